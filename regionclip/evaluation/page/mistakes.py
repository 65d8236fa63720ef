"""Wrong detections, by what they are: another class, a poor box, a duplicate, or background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from regionclip.evaluation.page.matching import UNMATCHED, ClassMatches, Floats

WORST = 10
"""Wrong detections that a page shows."""

MIN_OVERLAP = 0.1
"""IoU from which a wrong detection has to do with an object (Hoiem et al., 2012)."""


@dataclass(frozen=True)
class Mistake:
    """A wrong detection."""

    score: float
    """In [0, 1]."""
    detected: int
    """Class index."""
    image: int
    """Index of the image."""
    box: tuple[float, float, float, float]
    """x y width height in pixels."""
    reason: str
    """`another class`, `poor box`, `duplicate` or `background`."""
    actual: int | None = None
    """Class index of the object that it lies on."""
    actual_box: tuple[float, float, float, float] | None = None


def wrong_detections(
    matches: Sequence[ClassMatches], shown: Sequence[Floats], objects: Sequence[Sequence[dict[str, Any]]], limit: int
) -> list[Mistake]:
    """Return the wrong detections with the highest scores, at an IoU of 0.5.

    Args:
        matches: of each class.
        shown: [D] scores of each class in [0, 1].
        objects: annotations of each image, with category ids 1, 2, ...
        limit: number of detections at most.
    """
    candidates = [
        (float(shown[number][i]), number, int(i))
        for number, entry in enumerate(matches)
        for i in np.flatnonzero((entry.matched[0] == UNMATCHED) & ~entry.ignored[0])[:limit]
    ]
    worst = sorted(candidates, key=lambda entry: -entry[0])[:limit]
    return [_explain(score, number, matches[number], i, objects) for score, number, i in worst]


def _explain(
    score: float, number: int, matches: ClassMatches, i: int, objects: Sequence[Sequence[dict[str, Any]]]
) -> Mistake:
    image, box = int(matches.images[i]), matches.boxes[i]
    near = objects[image]
    x, y, width, height = map(float, box)
    place = (x, y, width, height)
    if near:
        truth = np.array([entry["bbox"] for entry in near], float)
        ious = np.asarray(mask_tools.iou(box[None], truth, [0] * len(near)))[0]
        best = int(ious.argmax())
        if ious[best] >= MIN_OVERLAP:
            actual = near[best]["category_id"] - 1
            reason = "another class" if actual != number else "duplicate" if ious[best] >= 0.5 else "poor box"
            left, top, across, down = (float(edge) for edge in near[best]["bbox"])
            return Mistake(score, number, image, place, reason, actual, (left, top, across, down))
    return Mistake(score, number, image, place, "background")


def confusions(mistakes: Sequence[Mistake]) -> Counter[tuple[int, int]]:
    """Return how often a class (first) was detected on an object of another (second)."""
    return Counter(
        (mistake.detected, mistake.actual)
        for mistake in mistakes
        if mistake.reason == "another class" and mistake.actual is not None
    )
