"""Losses, as plain functions and small objects."""
