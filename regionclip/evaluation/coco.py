"""COCO's metrics, and AP50 of base and novel classes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from numpy.typing import NDArray

from regionclip.evaluation.ground_truth import Annotations, coco_reader, coco_truth
from regionclip.evaluation.predictions import PredictionWriter, Results, for_task, tasks_of

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of COCO's twelve metrics, in the order of `COCOeval.stats`."""

IOU_50, ALL_AREAS, MAX_DETECTIONS_100 = 0, 0, 2
"""Indices in COCO's precision table [IoU, recall, class, area, detections]."""

_UPSTREAM_LOG_NAMES = {"novel": "target", "base": "base", "all": "all"}

COCOEvaluation = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The twelve metrics, and the precisions [10 IoU, 101 recall, K classes, 4 areas, 3 limits]; -1 means undefined."""


def evaluate_with_faster_coco_eval(content: dict[str, Any], results: Results, task: str) -> COCOEvaluation:
    """Evaluate with faster-coco-eval: the same metrics in a fraction of the time."""
    truth = indexed(faster_coco_eval.COCO(), content)
    evaluation = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(for_task(results, task)), task)
    return _run(evaluation)


def evaluate_with_pycocotools(content: dict[str, Any], results: Results, task: str) -> COCOEvaluation:
    """Evaluate with the official implementation, pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = indexed(pycocotools.coco.COCO(), content)
        return _run(pycocotools.cocoeval.COCOeval(truth, truth.loadRes(for_task(results, task)), task))


def indexed(truth: Any, content: dict[str, Any]) -> Any:
    """Return an empty COCO object of either library, filled with a ground truth."""
    truth.dataset = content
    truth.createIndex()
    return truth


BACKENDS: dict[str, Callable[[dict[str, Any], Results, str], COCOEvaluation]] = {
    "faster": evaluate_with_faster_coco_eval,
    "official": evaluate_with_pycocotools,
}
"""Values of TEST.EVALUATION_BACKEND."""


def mean_ap50(precisions: NDArray[np.float64], classes: Sequence[int]) -> float:
    """Return the mean AP50 in percent over `classes` (indices), ignoring classes without objects.

    NaN if none of them has objects.
    """
    values = precisions[IOU_50, :, list(classes), ALL_AREAS, MAX_DETECTIONS_100]
    values = values[values > -1]
    return float(values.mean() * 100) if values.size else float("nan")


class COCODetectionEvaluator(PredictionWriter):
    """Writes `coco_instances_results.json` and returns COCO's metrics in percent.

    For each task `bbox` (and `segm`): the twelve metrics, `AP-<class>`, and for datasets with
    class groups `AP50-novel`, `AP50-base`, `AP50-all`.
    """

    def __init__(
        self,
        annotations: Annotations,
        output_dir: str | Path,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        class_groups: Mapping[str, Sequence[str]] | None = None,
        backend: str = "faster",
    ) -> None:
        """Create an evaluator.

        Args:
            annotations: COCO JSON of the ground truth, or a function that reads its records.
            output_dir: for the files.
            class_names: by contiguous class index, in ascending order of category id.
            category_ids: by contiguous class index.
            class_groups: class names by group (`novel`, `base`).
            backend: a key of `BACKENDS`.
        """
        super().__init__(output_dir, "coco_instances_results.json", category_ids)
        self.read_records = coco_reader(annotations, category_ids)
        self.class_names = list(class_names)
        self.class_groups = dict(class_groups or {})
        self.backend = BACKENDS[backend]

    def metrics(self, results: Results) -> dict[str, Any]:
        """Return `{task: {metric: percent}}`; NaN if the ground truth or the detections are empty."""
        if not results:
            logger.warning("No detections at all: every metric is NaN")
            return {"bbox": dict.fromkeys(METRICS, float("nan"))}
        records, metrics = self.read_records(), {}
        for task in tasks_of(results):
            truth = coco_truth(records, self.category_ids, masks=task == "segm")
            metrics[task] = self._metrics_of(*self.backend(truth.content, truth.numbered(results), task), task)
        return metrics

    def _metrics_of(self, values: NDArray[np.float64], precisions: NDArray[np.float64], task: str) -> dict[str, float]:
        metrics = {
            name: float(value * 100) if value >= 0 else float("nan")
            for name, value in zip(METRICS, values, strict=True)
        }
        for i, name in enumerate(self.class_names):
            values = precisions[:, :, i, ALL_AREAS, MAX_DETECTIONS_100]
            values = values[values > -1]
            metrics[f"AP-{name}"] = float(values.mean() * 100) if values.size else float("nan")
        return metrics | self._group_metrics(precisions, task)

    def _group_metrics(self, precisions: NDArray[np.float64], task: str) -> dict[str, float]:
        if not self.class_groups:
            return {}
        position = {name: i for i, name in enumerate(self.class_names)}
        groups = {group: [position[name] for name in names] for group, names in self.class_groups.items()}
        groups["all"] = list(position.values())
        metrics = {group: mean_ap50(precisions, members) for group, members in groups.items()}
        for group, value in metrics.items():  # upstream's log lines, as fractions, for scripts that read logs
            logger.info("%s AP50_split_%s AP: %s", task, _UPSTREAM_LOG_NAMES[group], value / 100)
        return {f"AP50-{group}": value for group, value in metrics.items()}


def _run(evaluation: Any) -> COCOEvaluation:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.asarray(evaluation.stats, dtype=np.float64), np.asarray(evaluation.eval["precision"])
