"""Registered datasets and their annotation files; `builtin` registers all names."""
