"""Running detectors: setup, weights, inference, evaluation, training, visualisation."""

import regionclip.data
import regionclip.modeling  # noqa: F401 - both register the names that configs use
from regionclip.engine.evaluate import evaluate, prepare_evaluation
from regionclip.engine.inference import InferenceReport, run_inference
from regionclip.engine.training import DetectorTrainer
from regionclip.engine.visualization import VisualizationOptions, visualize_results

__all__ = [
    "DetectorTrainer",
    "InferenceReport",
    "VisualizationOptions",
    "evaluate",
    "prepare_evaluation",
    "run_inference",
    "visualize_results",
]
