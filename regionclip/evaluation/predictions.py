"""Collection of detections from all processes, written to the published result files."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from regionclip.files import atomic_write
from regionclip.records import MappedImage, Prediction, Result

Results = Collection[Result]
"""Detections in COCO's format, which may be generated on each iteration."""


class PackedPredictions(Collection[Prediction]):
    """Predictions as bytes, in order of arrival: a tenth of the memory of Python objects."""

    def __init__(self, packed: Iterable[bytes] = ()) -> None:
        """Start with the `packed` bytes of other instances."""
        self.packed = list(packed)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.packed)

    def __iter__(self) -> Iterator[Prediction]:
        """Unpack image by image."""
        classes: dict[int, int] = {}
        for packed in self.packed:
            prediction = pickle.loads(packed)
            for result in prediction["instances"]:
                # One object for equal ids: separate ones take 100 MB for a million boxes.
                result["image_id"] = prediction["image_id"]
                result["category_id"] = classes.setdefault(result["category_id"], result["category_id"])
            yield prediction

    def __contains__(self, prediction: object) -> bool:
        """Return whether an equal prediction is included."""
        return any(prediction == own for own in self)

    def extend(self, predictions: Iterable[Prediction]) -> None:
        """Append images."""
        self.packed += map(pickle.dumps, predictions)


class ResultsOfAll(Collection[Result]):
    """The results of all images, with the category ids of the dataset."""

    def __init__(self, predictions: Collection[Prediction], category_ids: Sequence[int]) -> None:
        """Store the predictions, still packed; `category_ids` by contiguous class index."""
        self.predictions, self.category_ids = predictions, category_ids
        self._length = sum(len(prediction["instances"]) for prediction in predictions)

    def __len__(self) -> int:
        """Return the number of results."""
        return self._length

    def __iter__(self) -> Iterator[Result]:
        """Generate the results image by image."""
        return itertools.chain.from_iterable(self.by_image())

    def __contains__(self, result: object) -> bool:
        """Return whether an equal result is included."""
        return any(result == own for own in self)

    def by_image(self) -> Iterator[list[Result]]:
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
    """Collects and writes detections; base of the evaluators, sufficient without ground truth."""

    def __init__(self, output_dir: str | Path, file_name: str, category_ids: Sequence[int]) -> None:
        """Create a writer.

        Args:
            output_dir: gets `instances_predictions.pth` and the result file.
            file_name: of the JSON file with results in COCO's format.
            category_ids: category id of the dataset by contiguous class index.
        """
        self.output_dir = Path(output_dir)
        self.results_file = self.output_dir / file_name
        self.category_ids = list(category_ids)
        self.predictions = PackedPredictions()
        self.results: Results = ()
        """Detections of all processes after `evaluate`, on the main process."""

    def reset(self) -> None:
        """Discard all detections."""
        self.predictions, self.results = PackedPredictions(), ()

    def process(self, inputs: Sequence[MappedImage], outputs: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Collect the detections of a batch, and return them as plain numbers."""
        predictions = [self.prediction_of(*pair) for pair in zip(inputs, outputs, strict=True)]
        self.predictions.extend(predictions)
        return predictions

    def prediction_of(self, image: MappedImage, output: dict[str, Any]) -> Prediction:
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
        self.results = results = ResultsOfAll(predictions, self.category_ids)
        results.write(self.results_file)
        return self.metrics(results)

    def metrics(self, results: Results) -> dict[str, Any]:
        """Return the metrics of results in COCO's format; empty without ground truth."""
        return {}


def tasks_of(results: Results) -> list[str]:
    """Return the tasks that results can be evaluated for: boxes, and masks if present."""
    return ["bbox", "segm"] if any("segmentation" in result for result in results) else ["bbox"]


def for_task(results: Iterable[Result], task: str) -> list[Result]:
    """Return copies of results for one task; without the box, mask area is computed from the mask."""
    unused = "bbox" if task == "segm" else "segmentation"
    return [cast(Result, {key: value for key, value in result.items() if key != unused}) for result in results]
