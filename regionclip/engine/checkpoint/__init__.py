"""Checkpoints: reading files safely, recognizing their key layout, and loading weights with a report."""
