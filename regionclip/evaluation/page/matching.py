"""Matches of detections and objects by COCO's rules, kept for each detection."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_tools

from regionclip.evaluation.ground_truth import GroundTruth
from regionclip.evaluation.lvis import MAX_DETECTIONS, limit_detections
from regionclip.evaluation.predictions import Results

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU from which a detection matches an object."""

MAX_PER_CLASS = 100
"""Detections of a class in an image that count, in COCO."""

UNMATCHED = -1

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassMatches:
    """The D detections of a class in I images, by descending score, and its objects."""

    scores: Floats
    """[D]."""
    images: Indices
    """[D], index of the image."""
    boxes: Floats
    """[D, 4], x y width height in pixels."""
    matched: Indices
    """[10, D], at each of `THRESHOLDS`: index of the matched object in its image, else `UNMATCHED`."""
    ignored: Flags
    """[10, D]: the detection counts neither as right nor as wrong."""
    objects: Indices
    """[I], number of objects that count."""

    @property
    def is_right(self) -> Flags:
        """[10, D]: the detection matches an object that counts."""
        return (self.matched != UNMATCHED) & ~self.ignored


def match_classes(truth: GroundTruth, results: Results, *, is_federated: bool = False) -> list[ClassMatches]:
    """Match the detections of all classes.

    Args:
        truth: objects of I images and K classes, numbered 1, 2, ...
        results: detections with the ids of the dataset.
        is_federated: LVIS's rules: 300 detections of an image count, only those of classes that are annotated for it,
            and none of a class that is not annotated exhaustively is wrong.

    Returns:
        One for each class, by its number.
    """
    content = truth.content
    found = _by_class(truth.numbered(results), is_federated=is_federated)
    objects: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    places = {image["id"]: place for place, image in enumerate(content["images"])}
    rules = _Rules({image["id"]: image for image in content["images"]}, places, objects, is_federated)
    counts = np.zeros((len(content["categories"]), len(places)), np.int64)  # [K, I]
    for annotation in content["annotations"]:
        counts[annotation["category_id"] - 1, places[annotation["image_id"]]] += not annotation["iscrowd"]
    return [_match_class(number, found.get(number, {}), rules, own) for number, own in enumerate(counts, start=1)]


@dataclass(frozen=True)
class _Rules:
    images: Mapping[int, Mapping[str, Any]]
    places: Mapping[int, int]
    """Index of each image."""
    objects: Mapping[tuple[int, int], Sequence[dict[str, Any]]]
    is_federated: bool

    def counts(self, category: int, image: int) -> bool:
        """Return whether detections of a class in an image count."""
        known = (category, image) in self.objects or category in self.images[image].get("neg_category_ids", ())
        return known or not self.is_federated

    def is_exhaustive(self, category: int, image: int) -> bool:
        """Return whether all objects of a class are annotated in an image."""
        partial: Collection[int] = self.images[image].get("not_exhaustive_category_ids", ())
        return not (self.is_federated and category in partial)


ByImage = dict[int, tuple[Floats, Floats]]
"""Scores [D] and boxes [D, 4] of a class by image number, the best first."""


def _by_class(results: Results, *, is_federated: bool) -> dict[int, ByImage]:
    """Return the detections that count, as arrays."""
    kept = limit_detections(results, MAX_DETECTIONS) if is_federated else results
    flat: dict[tuple[int, int], array[float]] = defaultdict(lambda: array("d"))
    for result in kept:
        flat[result["category_id"], result["image_id"]].extend((result["score"], *result["bbox"]))
    by_class: dict[int, ByImage] = defaultdict(dict)
    for (category, image), numbers in flat.items():
        table = np.frombuffer(numbers).reshape(-1, 5)
        order = np.argsort(-table[:, 0], kind="stable")[: None if is_federated else MAX_PER_CLASS]
        by_class[category][image] = table[order, 0], table[order, 1:]
    return by_class


@dataclass(frozen=True)
class _ImageMatches:
    scores: Floats
    boxes: Floats
    matched: Indices
    ignored: Flags
    place: int
    """Index of the image."""


def _match_class(category: int, found: ByImage, rules: _Rules, objects: Indices) -> ClassMatches:
    parts = []
    for image in sorted(found):
        if rules.counts(category, image):
            near = rules.objects.get((category, image), ())
            parts.append(_match_image(*found[image], near, rules.places[image]))
            if not rules.is_exhaustive(category, image):
                parts[-1].ignored[parts[-1].matched == UNMATCHED] = True
    parts = parts or [_match_image(np.zeros(0), np.zeros((0, 4)), (), 0)]
    scores = np.concatenate([part.scores for part in parts])
    images = np.concatenate([np.full(len(part.scores), part.place) for part in parts])
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(
        scores[order],
        images[order],
        np.concatenate([part.boxes for part in parts])[order],
        np.concatenate([part.matched for part in parts], axis=1)[:, order],
        np.concatenate([part.ignored for part in parts], axis=1)[:, order],
        objects,
    )


def _match_image(scores: Floats, boxes: Floats, objects: Sequence[dict[str, Any]], place: int) -> _ImageMatches:
    """Match detections, the best first, each with the free object of the highest IoU; crowds match any number."""
    matched = np.full((len(THRESHOLDS), len(scores)), UNMATCHED)
    ignored = np.zeros(matched.shape, bool)
    crowd = np.array([entry["iscrowd"] for entry in objects], np.uint8)
    if len(scores) and len(objects):
        ious = np.asarray(mask_tools.iou(boxes, np.array([entry["bbox"] for entry in objects], float), crowd))
        for row, threshold in enumerate(THRESHOLDS):
            free = np.ones(len(objects), bool)
            for detection in np.flatnonzero((ious >= threshold).any(axis=1)):
                # An object that counts goes before a crowd; of equal ones the last.
                able = (ious[detection] >= threshold) & (free | (crowd > 0))
                able &= (crowd == 0) if (able & (crowd == 0)).any() else True
                if able.any():
                    values = np.where(able, ious[detection], -1.0)
                    best = len(values) - 1 - int(np.argmax(values[::-1]))
                    matched[row, detection], ignored[row, detection] = best, bool(crowd[best])
                    free[best] = False
    return _ImageMatches(scores, boxes, matched, ignored, place)
