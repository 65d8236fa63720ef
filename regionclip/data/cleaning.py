"""Annotations that cannot be learned from: left out, counted, and reported once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from detectron2.structures import BoxMode

Record = dict[str, Any]

EDGE_TOLERANCE = 1.0
"""Pixels by which a box may reach over the edge of its image without being counted: rounding."""

CLIPPED = "boxes cut at the edge of the image"
WITHOUT_ANNOTATION = "images without annotation"
ONLY_CROWDS = "images with crowds only"
NOTHING_LEFT = "images whose annotations are all unusable"


def clean_records(
    records: Iterable[Record], num_classes: int, *, mask_format: str | None = None
) -> tuple[list[Record], Counter[str]]:
    """Return the records that can be trained on, with usable annotations, and what was changed.

    Args:
        records: Detectron2's dataset records.
        num_classes: classes have to be 0 ... num_classes - 1.
        mask_format: "polygon" or "bitmask" where masks are learned; None where they are not.

    Returns:
        (records with at least one annotation that is no crowd, counts by reason).
    """
    counts: Counter[str] = Counter()
    kept = []
    for record in records:
        annotations = [annotation for annotation in record.get("annotations", ()) if not annotation.get("iscrowd", 0)]
        usable = []
        for annotation in annotations:
            reason = _problem(annotation, record, num_classes, mask_format)
            if reason:
                counts[reason] += 1
            else:
                usable.append(_clipped(annotation, record, counts))
        if usable:
            kept.append({**record, "annotations": usable})
        elif annotations:
            counts[NOTHING_LEFT] += 1
        else:
            counts[ONLY_CROWDS if record.get("annotations") else WITHOUT_ANNOTATION] += 1
    return kept, counts


def _problem(annotation: Record, record: Record, num_classes: int, mask_format: str | None) -> str | None:
    """Return why an annotation cannot be used, or None."""
    category = annotation.get("category_id")
    if not isinstance(category, int) or not 0 <= category < num_classes:
        return f"annotations of a class beyond the {num_classes} of the detector"
    try:
        box = _corners(annotation)
    except (KeyError, TypeError, ValueError):
        return "boxes that are not four numbers"
    if not all(math.isfinite(value) for value in box):
        return "boxes with coordinates that are not finite"
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return "boxes without area"
    if right <= 0 or bottom <= 0 or left >= record["width"] or top >= record["height"]:
        return "boxes outside the image"
    return _mask_problem(annotation.get("segmentation"), mask_format) if mask_format else None


def _mask_problem(segmentation: Any, mask_format: str) -> str | None:
    if not segmentation:
        return "annotations without mask"
    if isinstance(segmentation, dict):
        return "run-length masks (INPUT.MASK_FORMAT bitmask takes them)" if mask_format == "polygon" else None
    if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
        return "masks with broken polygons"
    if not all(math.isfinite(value) for polygon in segmentation for value in polygon):
        return "masks with broken polygons"
    return None


def _clipped(annotation: Record, record: Record, counts: Counter[str]) -> Record:
    left, top, right, bottom = _corners(annotation)
    inside = [max(left, 0.0), max(top, 0.0), min(right, record["width"]), min(bottom, record["height"])]
    if max(abs(a - b) for a, b in zip(inside, (left, top, right, bottom), strict=True)) > EDGE_TOLERANCE:
        counts[CLIPPED] += 1
    elif inside == [left, top, right, bottom]:
        return annotation
    return {**annotation, "bbox": inside, "bbox_mode": BoxMode.XYXY_ABS}


def _corners(annotation: Record) -> list[float]:
    box = [float(value) for value in annotation["bbox"]]
    if len(box) != 4:
        raise ValueError(f"{len(box)} numbers")
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
