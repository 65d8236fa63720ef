"""LVIS's metrics: federated ground truth, 300 detections per image, frequency groups."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
from numpy.typing import NDArray

from regionclip.evaluation.coco import indexed
from regionclip.evaluation.ground_truth import Annotations, lvis_reader, lvis_truth
from regionclip.evaluation.predictions import PredictionWriter, Results, for_task, tasks_of
from regionclip.records import Result

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
"""LVIS's nine AP metrics; `r`, `c`, `f` are the rare, common and frequent classes."""

MAX_DETECTIONS = 300
"""Maximum number of detections per image in LVIS, over all classes."""

CLASSES_AT_ONCE = 64
"""Chunk of classes for faster-coco-eval, which keeps a table of all images and classes."""

_AREAS = {"s": 1, "m": 2, "l": 3}
_FREQUENCIES = ("r", "c", "f")
_IOU_50, _IOU_75 = 0, 5


def evaluate_with_faster_coco_eval(content: dict[str, Any], results: Results, task: str) -> dict[str, float]:
    """Evaluate with faster-coco-eval: the same metrics in a fraction of the time; -1 means undefined."""
    by_class = defaultdict(list)
    for result in for_task(_checked(content, limit_detections(results, MAX_DETECTIONS)), task):
        by_class[result["category_id"]].append(result)
    truth = indexed(faster_coco_eval.COCO(), content)
    # Classes at a stride in the list balance their frequencies over the chunks.
    classes = sorted(truth.getCatIds())
    count = -(-len(classes) // CLASSES_AT_ONCE)
    precisions: dict[int, NDArray[np.float64]] = {}
    for first in range(count):
        chunk = classes[first::count]
        found = [result for number in chunk for result in by_class.pop(number, ())]
        table = _precisions(truth, found, chunk, task)  # [10 IoU, 101 recall, K, 4 areas]
        precisions |= {number: table[:, :, place] for place, number in enumerate(chunk)}
    return _metrics(np.stack([precisions[number] for number in classes], axis=2), truth, classes)


def _precisions(
    truth: faster_coco_eval.COCO, results: list[Result], classes: Sequence[int], task: str
) -> NDArray[np.float64]:
    evaluation = _FasterEvaluation(truth, truth.loadRes(results), task, lvis_style=True)
    evaluation.params.catIds = list(classes)
    objects = (truth.anns[number] for number in truth.getAnnIds(catIds=classes))
    # Other images do not change the precision of these classes.
    evaluation.params.imgIds = sorted({item["image_id"] for item in itertools.chain(results, objects)})
    evaluation.params.maxDets = [MAX_DETECTIONS]
    if not evaluation.params.imgIds:
        shape = (len(evaluation.params.iouThrs), len(evaluation.params.recThrs), len(classes), 1 + len(_AREAS))
        return np.full(shape, -1.0)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., 0]


def _metrics(precisions: NDArray[np.float64], truth: faster_coco_eval.COCO, classes: Sequence[int]) -> dict[str, float]:
    """Return the nine metrics from precisions [10 IoU, 101 recall, K, 4 areas]."""
    frequencies = np.array([truth.cats[number].get("frequency") for number in classes])
    tables = {"AP": precisions[..., 0], "AP50": precisions[_IOU_50, ..., 0], "AP75": precisions[_IOU_75, ..., 0]}
    tables |= {f"AP{name}": precisions[..., area] for name, area in _AREAS.items()}
    tables |= {f"AP{name}": precisions[:, :, frequencies == name, 0] for name in _FREQUENCIES}
    known = {name: table[table > -1] for name, table in tables.items()}
    return {name: float(values.mean()) if values.size else -1.0 for name, values in known.items()}


class _FasterEvaluation(faster_coco_eval.COCOeval_faster):
    """faster-coco-eval's LVIS evaluation, without its frequency groups, which `_metrics` computes."""

    def _prepare_freq_group(self) -> list[list[int]]:
        return []


def evaluate_with_lvis(content: dict[str, Any], results: Results, task: str) -> dict[str, float]:
    """Evaluate with LVIS's official implementation; -1 means undefined."""
    from regionclip.evaluation.lvis_official import evaluate  # imports matplotlib.pyplot

    measured = evaluate(content, for_task(results, task), task, MAX_DETECTIONS)
    return {name: float(measured[name]) for name in METRICS}


BACKENDS: dict[str, Callable[[dict[str, Any], Results, str], dict[str, float]]] = {
    "faster": evaluate_with_faster_coco_eval,
    "official": evaluate_with_lvis,
}
"""Values of TEST.EVALUATION_BACKEND."""


def limit_detections(results: Results, limit: int) -> Iterator[Result]:
    """Yield the `limit` best results of each image, as LVIS does, in the order of `results`; the first of ties."""
    images = np.fromiter((result["image_id"] for result in results), np.int64, len(results))
    scores = np.fromiter((result["score"] for result in results), np.float64, len(results))
    order = np.lexsort((-scores, images))
    ranked = images[order]
    rank = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    kept = np.zeros(len(order), bool)
    kept[order[rank < limit]] = True
    return itertools.compress(results, kept)


def _checked(truth: dict[str, Any], results: Iterable[Result]) -> Iterator[Result]:
    """Yield the results whose class is annotated for their image; LVIS ignores all others.

    faster-coco-eval drops them too, but fails before on masks in images that have no other results.
    """
    classes = {image["id"]: set(image["neg_category_ids"]) for image in truth["images"]}
    for annotation in truth["annotations"]:
        classes[annotation["image_id"]].add(annotation["category_id"])
    return (result for result in results if result["category_id"] in classes[result["image_id"]])


class LVISDetectionEvaluator(PredictionWriter):
    """Writes `lvis_instances_results.json` and returns LVIS's metrics in percent."""

    def __init__(
        self, annotations: Annotations, output_dir: str | Path, *, category_ids: Sequence[int], backend: str = "faster"
    ) -> None:
        """Create an evaluator.

        Args:
            annotations: LVIS JSON of the ground truth, or a function that reads its records.
            output_dir: for the files.
            category_ids: the dataset's ids by contiguous class index.
            backend: a key of `BACKENDS`.
        """
        super().__init__(output_dir, "lvis_instances_results.json", category_ids)
        self.read_records = lvis_reader(annotations, category_ids)
        self.backend = BACKENDS[backend]

    def metrics(self, results: Results) -> dict[str, Any]:
        """Return `{task: {metric: percent}}`; NaN if the ground truth or the detections are empty."""
        if not results:
            logger.warning("No detections at all: every metric is NaN")
            return {"bbox": dict.fromkeys(METRICS, float("nan"))}
        records, metrics = self.read_records(), {}
        for task in tasks_of(results):
            truth = lvis_truth(records, self.category_ids, masks=task == "segm")
            measured = self.backend(truth.content, truth.numbered(results), task)
            metrics[task] = {name: value * 100 if value >= 0 else float("nan") for name, value in measured.items()}
        return metrics
