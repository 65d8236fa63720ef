"""Evaluation of a model on registered datasets, resumed after an interruption."""
