"""Transformer image encoders in plain PyTorch."""
