"""Evaluators: COCO with base and novel classes, LVIS, and predictions without ground truth."""
