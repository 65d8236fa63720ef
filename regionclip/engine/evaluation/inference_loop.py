"""Inference over test images with a progress bar; an unreadable image never stops the run."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import nn

from regionclip.data.test_loader import TestLoader
from regionclip.engine.signals import Interrupted, stop_requested
from regionclip.evaluation.predictions import PredictionWriter
from regionclip.journal import Journal
from regionclip.progress import progress_bar
from regionclip.records import MappedImage, Prediction

logger = logging.getLogger(__name__)


@dataclass
class InferenceReport:
    """Result of a run over a dataset."""

    images: int = 0
    """Number of images with predictions, over all processes, including those of an interrupted run."""
    seconds: float = 0.0
    """Wall-clock time of the loop on this process."""
    failures: list[str] = field(default_factory=list)
    """One line for each unreadable image."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The evaluator's metrics; empty on all but the main process."""


def run_inference(
    model: nn.Module,
    loader: TestLoader,
    evaluator: PredictionWriter,
    journal: Journal | None = None,
    finished: Sequence[Prediction] = (),
) -> InferenceReport:
    """Run the model over a loader and evaluate.

    Args:
        model: put in evaluation mode for the loop.
        loader: batches of mapped images; those with the key `error` are skipped and reported.
        evaluator: collects outputs and computes the metrics.
        journal: gets every finished image.
        finished: predictions of an interrupted run, whose images the loader skips; each on one
            process only.
    """
    report = InferenceReport(images=len(finished))
    start = time.perf_counter()
    evaluator.reset()
    evaluator.predictions.extend(finished)
    with inference_context(model), torch.no_grad():
        for batch in _with_progress(loader):
            if stop_requested():
                break
            report.failures += [image["error"] for image in batch if "error" in image]
            images = [image for image in batch if "error" not in image]
            if images:
                predictions = evaluator.process(images, model(images))
                report.images += len(images)
                if journal is not None:
                    journal.append(predictions)
    if any(comm.all_gather(stop_requested())):
        raise Interrupted
    report.seconds = time.perf_counter() - start
    # Collected from all processes, so that no failure is missed.
    report.failures = list(itertools.chain(*comm.all_gather(report.failures)))
    report.images = sum(comm.all_gather(report.images))
    report.metrics = evaluator.evaluate() or {}
    for failure in report.failures:
        logger.error("Skipped unreadable image %s", failure)
    return report


def _with_progress(loader: TestLoader) -> Iterable[list[MappedImage]]:
    return progress_bar(loader, unit="image", hidden=not comm.is_main_process())
