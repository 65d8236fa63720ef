"""Aids for tests and demonstrations: weights and embeddings that need no file."""
