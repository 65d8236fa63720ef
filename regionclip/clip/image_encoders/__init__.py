"""Transformer image encoders as plain torch."""
