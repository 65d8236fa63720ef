"""Recall of objects of unseen classes, when detections of seen objects cost no budget (OLN's protocol).

Kim et al. (2022) train on some classes and ask how many objects of the others are among the k best proposals. A
proposal of a seen object is right too, so it is removed from the ranking before k is counted.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from numpy.typing import NDArray

from regionclip.evaluation.coco import indexed
from regionclip.evaluation.predictions import Results

LIMITS = (10, 20, 30, 50, 100, 300, 500, 1000, 1500)
"""Numbers of proposals per image at which recall is measured; all proposals up to the last one are matched."""

_AUC_LIMITS = (10, 30, 50, 100, 300, 500, 1000)
_OUTSIDE, _LARGEST = 1e12, 1e10
"""An area outside of the evaluated range makes an object one that is ignored, but that takes one detection only."""


def unseen_recalls(
    content: dict[str, Any], results: Results, seen: Collection[int], limits: Sequence[int] = LIMITS
) -> dict[int, float]:
    """Return the average recall, in [0, 1], of the objects of unseen classes at each limit; NaN if there are none.

    Args:
        content: ground truth in COCO's format.
        results: class-agnostic detections.
        seen: category ids of the seen classes.
        limits: ascending numbers of detections.
    """
    annotations = [
        {**annotation, "area": _OUTSIDE} if annotation["category_id"] in seen else annotation
        for annotation in content["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = indexed(pycocotools.coco.COCO(), {**content, "annotations": annotations})
        evaluation = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(list(results)), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [max(limits)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, _LARGEST]], ["all"]
        evaluation.evaluate()
    ids = {annotation["id"] for annotation in annotations if annotation["category_id"] in seen}
    images = [image for image in evaluation.evalImgs if image is not None]
    objects = sum(int((~np.asarray(image["gtIgnore"], dtype=bool)).sum()) for image in images)
    if not objects:
        return dict.fromkeys(limits, math.nan)
    matched = [_matched_without_seen(image, ids) for image in images]
    return {limit: float(np.mean(sum(part[:, :limit].sum(axis=1) for part in matched))) / objects for limit in limits}


def _matched_without_seen(image: dict[str, Any], seen: set[int]) -> NDArray[np.bool_]:
    """Return bool [T, D']: by IoU threshold, which detections match an unseen object; those of seen ones are left out.

    A detection is of a seen object if it matches one at the lowest threshold.
    """
    matches = np.asarray(image["dtMatches"])  # [T, D], best first
    kept = ~np.isin(matches[0], list(seen))
    return ((matches > 0) & ~np.asarray(image["dtIgnore"], dtype=bool))[:, kept]


def area_under_recall(recalls: dict[int, float]) -> float:
    """Return the area under the recall over log(k) / log(1000), from no recall at k = 1 (OLN's AUC)."""
    points = [(1, 0.0), *((limit, recalls[limit]) for limit in _AUC_LIMITS)]
    places = np.log([limit for limit, _ in points]) / math.log(_AUC_LIMITS[-1])
    values = np.array([value for _, value in points])
    return float(np.sum(np.diff(places) * (values[1:] + values[:-1]) / 2))  # trapezoids, under any NumPy
