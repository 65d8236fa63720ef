"""Encoded images and vocabularies, which the predictor and `batch` stand on."""
