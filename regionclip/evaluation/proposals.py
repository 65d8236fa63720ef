"""Class-agnostic average recall of an RPN, for all, base and novel objects."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faster_coco_eval
import pycocotools.coco
import pycocotools.cocoeval
from detectron2.structures import BoxMode

from regionclip.data.datasets.annotation_file import id_key, id_order
from regionclip.evaluation.coco import indexed
from regionclip.evaluation.ground_truth import Annotations, coco_reader, coco_truth
from regionclip.evaluation.predictions import PredictionWriter, Results
from regionclip.evaluation.unseen_recall import area_under_recall, unseen_recalls
from regionclip.records import MappedImage, Prediction, Result

LIMITS = (10, 100, 1000)
"""Numbers of proposals per image at which recall is measured."""

_FIRST_RECALL = 6
"""Index of the recalls, one per limit, in COCO's metrics."""

TRUTHS = {"faster": faster_coco_eval.COCO, "official": pycocotools.coco.COCO}
EVALUATIONS = {"faster": faster_coco_eval.COCOeval_faster, "official": pycocotools.cocoeval.COCOeval}
"""Implementations by TEST.EVALUATION_BACKEND."""


class ProposalEvaluator(PredictionWriter):
    """Writes `coco_instances_results.json` with objectness as score, and returns COCO's average recalls.

    Under the task `proposals`: `AR@10`, `AR@100`, `AR@1000` in percent, and for datasets with class groups
    the same for the objects of each group (`AR@100-novel`, `AR@100-base`). OLN's protocol adds `AR@100-unseen` and
    others, and `AUC-unseen`.
    """

    def __init__(
        self,
        annotations: Annotations,
        output_dir: str | Path,
        *,
        class_ids: Mapping[str, int],
        class_groups: Mapping[str, Sequence[str]] | None = None,
        backend: str = "faster",
        unseen_budget: bool = False,
    ) -> None:
        """Create an evaluator.

        Args:
            annotations: COCO JSON of the ground truth, or a function that reads its records.
            output_dir: for the files.
            class_ids: category id by class name.
            class_groups: class names by group (`novel`, `base`).
            backend: `faster` or `official`.
            unseen_budget: also measure the recall of novel objects by OLN's protocol.
        """
        # Proposals are class-agnostic: all results are written with the first class.
        super().__init__(output_dir, "coco_instances_results.json", [min(class_ids.values(), key=_order)])
        self.class_ids = list(class_ids.values())
        self.read_records = coco_reader(annotations, self.class_ids)
        numbers = {name: i for i, name in enumerate(class_ids, start=1)}
        groups = {group: {numbers[name] for name in names} for group, names in (class_groups or {}).items()}
        self.groups: dict[str, set[int]] = {"": set(numbers.values()), **{f"-{g}": ids for g, ids in groups.items()}}
        self.backend, self.unseen_budget = backend, unseen_budget

    def prediction_of(self, image: MappedImage, output: dict[str, Any]) -> Prediction:
        """Return the proposals of one image as results of one class."""
        proposals = output["proposals"].to("cpu")
        boxes = BoxMode.convert(proposals.proposal_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        scores = proposals.objectness_logits.tolist()
        rows: list[Result] = [
            {"image_id": image["image_id"], "category_id": 0, "bbox": box, "score": score}
            for box, score in zip(boxes, scores, strict=True)
        ]
        return {"image_id": image["image_id"], "instances": rows}

    def metrics(self, results: Results) -> dict[str, Any]:
        """Return the recalls; NaN for a group without objects, or without any proposal."""
        truth = coco_truth(self.read_records(), self.class_ids)
        by_limit: dict[str, float] = {}
        for group, numbers in self.groups.items():
            kept = [annotation for annotation in truth.content["annotations"] if annotation["category_id"] in numbers]
            content = {**truth.content, "annotations": kept}
            recalls = self._recalls(content, truth.numbered(results)) if kept and results else ()
            values = recalls or [float("nan")] * len(LIMITS)
            by_limit |= {f"AR@{limit}{group}": value for limit, value in zip(LIMITS, values, strict=True)}
        if self.unseen_budget:
            by_limit |= self._unseen_recalls(truth.content, truth.numbered(results))
        return {"proposals": by_limit}

    def _unseen_recalls(self, content: dict[str, Any], results: Results) -> dict[str, float]:
        if not results or not self.groups.get("-novel"):
            return {"AUC-unseen": float("nan")}
        recalls = unseen_recalls(content, results, self.groups[""] - self.groups["-novel"])
        percent = {f"AR@{limit}-unseen": 100 * value for limit, value in recalls.items()}
        return {**percent, "AUC-unseen": 100 * area_under_recall(recalls)}

    def _recalls(self, content: dict[str, Any], results: Results) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = indexed(TRUTHS[self.backend](), content)
            evaluation = EVALUATIONS[self.backend](truth, truth.loadRes(list(results)), "bbox")
            evaluation.params.useCats = 0
            evaluation.params.maxDets = list(LIMITS)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(value) * 100 for value in evaluation.stats[_FIRST_RECALL : _FIRST_RECALL + len(LIMITS)]]


def _order(category_id: Any) -> tuple[int, int, str]:
    return id_order(id_key(category_id) or "")
