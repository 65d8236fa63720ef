"""Annotations that cannot be learned from: left out, counted, and reported once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_tools

from regionclip.data.images import UnreadableImageError, image_size

Record = dict[str, Any]

EDGE_TOLERANCE = 1.0
"""Pixels by which a box may reach over the edge of its image without being counted: rounding."""

CLIPPED = "boxes cut at the edge of the image"
WITHOUT_ANNOTATION = "images without annotation"
ONLY_CROWDS = "images with crowds only"
NOTHING_LEFT = "images whose annotations are all unusable"


WITHOUT_SIZE = "images without a size, in their annotations or their file"


def clean_records(
    records: Iterable[Record], num_classes: int | None, *, mask_format: str | None = None, keep_empty: bool = False
) -> tuple[list[Record], Counter[str]]:
    """Return the records that can be trained on, with usable annotations, and what was changed.

    Args:
        records: Detectron2's dataset records.
        num_classes: classes have to be 0 ... num_classes - 1; None where no class is learned.
        mask_format: "polygon" or "bitmask" where masks are learned; None where they are not.
        keep_empty: keep images without any usable annotation (FILTER_EMPTY_ANNOTATIONS False).

    Returns:
        (records, counts by reason). Crowds are left out without being counted.
    """
    counts: Counter[str] = Counter()
    kept = []
    for given in records:
        record = _with_size(given)
        if record is None:
            counts[WITHOUT_SIZE] += 1
            continue
        annotations = [a for a in record.get("annotations") or () if not (isinstance(a, dict) and _is_crowd(a))]
        usable = [_usable(a, record, num_classes, mask_format, counts) for a in annotations]
        record["annotations"] = [annotation for annotation in usable if annotation is not None]
        if record["annotations"] or keep_empty:
            kept.append(record)
        elif annotations:
            counts[NOTHING_LEFT] += 1
        else:
            counts[ONLY_CROWDS if given.get("annotations") else WITHOUT_ANNOTATION] += 1
    return kept, counts


def _with_size(record: Record) -> Record | None:
    size = record.get("height"), record.get("width")
    if not all(isinstance(side, int) and side > 0 for side in size):
        try:
            size = image_size(record["file_name"])
        except UnreadableImageError:
            return None
    return {**record, "height": size[0], "width": size[1]}


def _is_crowd(annotation: Record) -> bool:
    return annotation.get("iscrowd", 0) not in (0, "0", False, None)


def _usable(
    annotation: Any, record: Record, num_classes: int | None, mask_format: str | None, counts: Counter[str]
) -> Record | None:
    """Return an annotation that can be learned from, with its box inside the image; None counts why not."""
    if not isinstance(annotation, dict):
        counts["annotations that are none"] += 1
        return None
    try:
        problem = _problem(annotation, record, num_classes, mask_format)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        problem = "annotations that cannot be understood"
    if problem:
        counts[problem] += 1
        return None
    clipped = _clipped(annotation, record, counts)
    if mask_format is None:
        clipped.pop("segmentation", None)
    return clipped


def _problem(annotation: Record, record: Record, num_classes: int | None, mask_format: str | None) -> str | None:
    """Return why an annotation cannot be used, or None."""
    category = annotation.get("category_id")
    if not isinstance(category, int) or category < 0:
        return "annotations without a class"
    if num_classes is not None and category >= num_classes:
        return f"annotations of a class beyond the {num_classes} of the detector"
    try:
        box = _corners(annotation)
    except (KeyError, TypeError, ValueError, OverflowError):
        return "boxes that are not four numbers"
    if not all(math.isfinite(value) for value in box):
        return "boxes with coordinates that are not finite"
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return "boxes without area"
    if right <= 0 or bottom <= 0 or left >= record["width"] or top >= record["height"]:
        return "boxes outside the image"
    return _mask_problem(annotation.get("segmentation"), record, mask_format) if mask_format else None


def _mask_problem(segmentation: Any, record: Record, mask_format: str) -> str | None:
    if not segmentation:
        return "annotations without mask"
    if isinstance(segmentation, dict):
        if mask_format == "polygon":
            return "run-length masks (INPUT.MASK_FORMAT bitmask takes them)"
        size = [record["height"], record["width"]]
        return None if _decodes(segmentation, size) else "run-length masks that are broken or of another size"
    try:
        points = [[float(value) for value in polygon] for polygon in segmentation]
    except (TypeError, ValueError):
        return "masks with broken polygons"
    if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in points):
        return "masks with broken polygons"
    if not all(math.isfinite(value) for polygon in points for value in polygon):
        return "masks with broken polygons"
    return None


def _decodes(run_lengths: Record, size: list[int]) -> bool:
    if list(run_lengths.get("size", ())) != size:
        return False
    counts = run_lengths.get("counts")
    if isinstance(counts, list):
        return sum(counts) == size[0] * size[1]
    try:
        return list(mask_tools.decode(run_lengths).shape) == size
    except (TypeError, ValueError, KeyError):
        return False


def _clipped(annotation: Record, record: Record, counts: Counter[str]) -> Record:
    left, top, right, bottom = _corners(annotation)
    inside = [max(left, 0.0), max(top, 0.0), min(right, record["width"]), min(bottom, record["height"])]
    if max(abs(a - b) for a, b in zip(inside, (left, top, right, bottom), strict=True)) > EDGE_TOLERANCE:
        counts[CLIPPED] += 1
    return {**annotation, "bbox": inside, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}


def _corners(annotation: Record) -> list[float]:
    box = [float(value) for value in annotation["bbox"]]
    if len(box) != 4:
        raise ValueError(f"{len(box)} numbers")
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
