"""Aids for tests and demonstrations: weights and embeddings that need no file."""

from regionclip.testing.deterministic import deterministic_state_dict, deterministic_text_embeddings, fill_deterministic

__all__ = ["deterministic_state_dict", "deterministic_text_embeddings", "fill_deterministic"]
