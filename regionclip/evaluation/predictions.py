"""Collecting detections over processes and writing them in the published files."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from regionclip.files import atomic_write

Prediction = dict[str, Any]
"""`image_id`, and `instances`: a list of results in COCO's format with contiguous `category_id`."""


Results = Collection[dict[str, Any]]
"""Detections in COCO's format, which may be made anew each time they are gone through."""


class PackedPredictions(Collection[Prediction]):
    """Predictions as bytes, in the order of their coming: a tenth of the memory that Python's objects take."""

    def __init__(self, packed: Iterable[bytes] = ()) -> None:
        """Take what `packed` of others holds."""
        self.packed = list(packed)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.packed)

    def __iter__(self) -> Iterator[Prediction]:
        """Unpack one image after the other."""
        classes: dict[int, int] = {}
        for packed in self.packed:
            prediction = pickle.loads(packed)
            for result in prediction["instances"]:
                # One object for equal numbers: those of a million boxes take a hundred megabytes.
                result["image_id"] = prediction["image_id"]
                result["category_id"] = classes.setdefault(result["category_id"], result["category_id"])
            yield prediction

    def __contains__(self, prediction: object) -> bool:
        """Return whether an image was predicted just so."""
        return any(prediction == own for own in self)

    def extend(self, predictions: Iterable[Prediction]) -> None:
        """Add images."""
        self.packed += map(pickle.dumps, predictions)


class ResultsOfAll(Collection[dict[str, Any]]):
    """The results of all images, with the category ids of the dataset."""

    def __init__(self, predictions: Collection[Prediction], category_ids: Sequence[int]) -> None:
        """Unpack nothing yet; `category_ids` by contiguous class number."""
        self.predictions, self.category_ids = predictions, category_ids
        self._length = sum(len(prediction["instances"]) for prediction in predictions)

    def __len__(self) -> int:
        """Return the number of results."""
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Make the results of one image after the other."""
        return itertools.chain.from_iterable(self.by_image())

    def __contains__(self, result: object) -> bool:
        """Return whether there is such a result."""
        return any(result == own for own in self)

    def by_image(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the results of each image."""
        for prediction in self.predictions:
            yield [
                {**result, "category_id": self.category_ids[result["category_id"]]}
                for result in prediction["instances"]
            ]

    def write(self, path: Path) -> None:
        """Write a JSON list, atomically, image by image."""
        with atomic_write(path) as file:
            separator = "["
            for results in self.by_image():
                if results:
                    file.write(f"{separator}{json.dumps(results)[1:-1]}".encode())
                    separator = ", "
            file.write(b"]" if separator == ", " else b"[]")


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
        self.predictions = PackedPredictions()

    def reset(self) -> None:
        """Forget all detections."""
        self.predictions = PackedPredictions()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Take the detections of a batch, and return them as plain numbers."""
        predictions = [self.prediction_of(*pair) for pair in zip(inputs, outputs, strict=True)]
        self.predictions.extend(predictions)
        return predictions

    def prediction_of(self, image: dict[str, Any], output: dict[str, Any]) -> Prediction:
        """Return the detections of one image as plain numbers."""
        instances = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
        return {"image_id": image["image_id"], "instances": instances}

    def evaluate(self) -> dict[str, Any]:
        """Write the detections of all processes; return the metrics, on the main process only."""
        comm.synchronize()
        predictions = PackedPredictions(itertools.chain(*comm.gather(self.predictions.packed, dst=0)))
        if not comm.is_main_process():
            return {}
        with atomic_write(self.output_dir / "instances_predictions.pth") as file:
            torch.save(list(predictions), file)
        results = ResultsOfAll(predictions, self.category_ids)
        results.write(self.results_file)
        return self.metrics(results)

    def metrics(self, results: Results) -> dict[str, Any]:
        """Return the metrics of results in COCO's format; there are none without ground truth."""
        return {}


def tasks_of(results: Results) -> list[str]:
    """Return what the results can be evaluated as: boxes, and masks when there are any."""
    return ["bbox", "segm"] if any("segmentation" in result for result in results) else ["bbox"]


def for_task(results: Iterable[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return copies of results for one task; without box, mask area is taken from the mask."""
    unused = "bbox" if task == "segm" else "segmentation"
    return [{key: value for key, value in result.items() if key != unused} for result in results]
