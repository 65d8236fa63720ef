"""Optimization of a loaded detector for inference, with the same results."""
