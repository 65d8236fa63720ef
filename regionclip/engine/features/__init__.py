"""Embeddings of regions of many images: computed, shared out over processes, written, found again."""
