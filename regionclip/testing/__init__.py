"""Helpers for tests and demos: weights and embeddings that need no file."""
