"""Evaluators: COCO with base and novel classes, LVIS, and predictions without ground truth."""

from regionclip.evaluation.build import build_evaluator
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from regionclip.evaluation.predictions import Prediction, PredictionWriter

__all__ = ["COCODetectionEvaluator", "LVISDetectionEvaluator", "Prediction", "PredictionWriter", "build_evaluator"]
