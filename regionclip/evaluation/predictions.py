"""Collecting detections over processes and writing them in the published files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from regionclip.files import atomic_write, write_json

Prediction = dict[str, Any]
"""`image_id`, and `instances`: a list of results in COCO's format with contiguous `category_id`."""


class PredictionWriter(DatasetEvaluator):
    """Gathers detections and writes them; the base of the evaluators, enough where there is no ground truth."""

    def __init__(self, output_dir: str | Path, file_name: str, category_ids: Sequence[int]) -> None:
        """Make a writer.

        Args:
            output_dir: gets `instances_predictions.pth` and the results file.
            file_name: of the JSON with results in COCO's format.
            category_ids: category id of the dataset by contiguous class number.
        """
        self.output_dir = Path(output_dir)
        self.results_file = self.output_dir / file_name
        self.category_ids = list(category_ids)
        self.predictions: list[Prediction] = []

    def reset(self) -> None:
        """Forget all detections."""
        self.predictions = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the detections of a batch."""
        self.predictions += [prediction_of(*pair) for pair in zip(inputs, outputs, strict=True)]

    def evaluate(self) -> dict[str, Any]:
        """Write the detections of all processes; return the metrics, on the main process only."""
        comm.synchronize()
        predictions = list(itertools.chain(*comm.gather(self.predictions, dst=0)))
        if not comm.is_main_process():
            return {}
        with atomic_write(self.output_dir / "instances_predictions.pth") as file:
            torch.save(predictions, file)
        results = [
            {**result, "category_id": self.category_ids[result["category_id"]]}
            for prediction in predictions
            for result in prediction["instances"]
        ]
        write_json(self.results_file, results)
        return self.metrics(results)

    def metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the metrics of results in COCO's format; there are none without ground truth."""
        return {}


def prediction_of(image: dict[str, Any], output: dict[str, Any]) -> Prediction:
    """Return the detections of one image as plain numbers."""
    instances = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
    return {"image_id": image["image_id"], "instances": instances}


def tasks_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the results can be evaluated as: boxes, and masks when there are any."""
    return ["bbox", "segm"] if any("segmentation" in result for result in results) else ["bbox"]


def for_task(results: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return copies of results for one task; without box, mask area is taken from the mask."""
    unused = "bbox" if task == "segm" else "segmentation"
    return [{key: value for key, value in result.items() if key != unused} for result in results]
