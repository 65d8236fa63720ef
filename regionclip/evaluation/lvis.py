"""LVIS's metrics: federated ground truth, 300 detections an image, frequency groups."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faster_coco_eval
import lvis
import numpy as np

from regionclip.evaluation.predictions import PredictionWriter, for_task, tasks_of

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
"""LVIS's nine precision figures; `r`, `c`, `f` are the rare, common and frequent classes."""

MAX_DETECTIONS = 300
"""Detections of an image that LVIS looks at, over all classes."""

_FASTER_NAMES = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
}


def evaluate_with_faster_coco_eval(annotations: str, results: list[dict[str, Any]], task: str) -> dict[str, float]:
    """Evaluate with faster-coco-eval, the same figures in a fraction of the time; -1 is no value."""
    truth = faster_coco_eval.COCO(annotations)
    detections = truth.loadRes(_checked(truth, limit_detections(results, MAX_DETECTIONS)))
    evaluation = faster_coco_eval.COCOeval_faster(truth, detections, task, lvis_style=True)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = evaluation.stats_as_dict
    return {name: figures[_FASTER_NAMES.get(name, name)] for name in METRICS}


def evaluate_with_lvis(annotations: str, results: list[dict[str, Any]], task: str) -> dict[str, float]:
    """Evaluate with LVIS's own implementation; -1 is no value."""
    if "annotations" not in json.loads(Path(annotations).read_text()):  # the test sets, which it cannot open
        return dict.fromkeys(METRICS, -1.0)
    truth = lvis.LVIS(annotations)
    evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, results, max_dets=MAX_DETECTIONS), task)
    with _numpy_float_alias():
        evaluation.run()
    figures = evaluation.get_results()
    return {name: float(figures[name]) for name in METRICS}


BACKENDS: dict[str, Callable[[str, list[dict[str, Any]], str], dict[str, float]]] = {
    "faster": evaluate_with_faster_coco_eval,
    "official": evaluate_with_lvis,
}
"""Values of TEST.EVALUATION_BACKEND."""


def limit_detections(results: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the `limit` best results of each image, as LVIS does; ties keep their order."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return [
        result
        for image in by_image.values()
        for result in (image if len(image) <= limit else sorted(image, key=lambda r: -r["score"])[:limit])
    ]


def _checked(truth: faster_coco_eval.COCO, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results whose class was looked for in their image; LVIS ignores all others.

    faster-coco-eval drops them too, but fails before on masks in images that have nothing else.
    """
    classes = {image["id"]: set(image.get("neg_category_ids", ())) for image in truth.dataset["images"]}
    for annotation in truth.dataset.get("annotations", ()):
        classes[annotation["image_id"]].add(annotation["category_id"])
    return [result for result in results if result["category_id"] in classes[result["image_id"]]]


@contextmanager
def _numpy_float_alias() -> Iterator[None]:
    """Give NumPy back the alias `float`, which lvis 0.5.3 still uses and NumPy 1.24 removed."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]


class LVISDetectionEvaluator(PredictionWriter):
    """Writes `lvis_instances_results.json` and returns LVIS's figures in percent."""

    def __init__(
        self, annotations: str, output_dir: str | Path, *, category_ids: Sequence[int], backend: str = "faster"
    ) -> None:
        """Make an evaluator; `category_ids` are the dataset's ids by contiguous class number."""
        super().__init__(output_dir, "lvis_instances_results.json", category_ids)
        self.annotations = annotations
        self.backend = BACKENDS[backend]

    def metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `{task: {metric: percent}}`; NaN where the ground truth or the detections are empty."""
        if not results:
            logger.warning("No detections at all: every figure is NaN")
            return {"bbox": dict.fromkeys(METRICS, float("nan"))}
        metrics = {}
        for task in tasks_of(results):
            figures = self.backend(self.annotations, for_task(results, task), task)
            metrics[task] = {name: value * 100 if value >= 0 else float("nan") for name, value in figures.items()}
        return metrics
