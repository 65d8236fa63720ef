"""Encoded images and vocabularies, shared by the predictor and `batch`."""
