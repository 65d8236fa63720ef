"""Evaluation of a model on registered datasets, with resumption after an interruption."""
