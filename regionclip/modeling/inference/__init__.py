"""Rewriting a loaded detector so that it computes the same in less time."""
