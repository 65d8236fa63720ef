"""Filtering of invalid annotations, counted and logged once, for training and evaluation alike."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from detectron2.structures import BoxMode

from regionclip.data.datasets.annotation_file import CLIPPED, side
from regionclip.data.datasets.masks import mask_problem, valid_mask
from regionclip.data.images import UnreadableImageError, image_size
from regionclip.records import Annotation, Record

EDGE_TOLERANCE = 1.0
"""Pixels by which a box may exceed its image without being counted, due to rounding."""

WITHOUT_ANNOTATION = "images without annotation"
ONLY_CROWDS = "images with crowds only"
NOTHING_LEFT = "images whose annotations are all unusable"
WITHOUT_SIZE = "images without a size, in their annotations or their file"

NO = ("", "0", "0.0", "false", "no", "none", "null", "nan")
"""Values that files use for an unset flag."""


def clean_records(
    records: Iterable[Record], num_classes: int | None, *, mask_format: str | None = None, keep_empty: bool = False
) -> tuple[list[Record], Counter[str]]:
    """Return the records with valid training annotations, and the counts of changes.

    Args:
        records: Detectron2's dataset records.
        num_classes: classes must be 0 ... num_classes - 1; None if no classes are learned.
        mask_format: "polygon" or "bitmask" for training with masks, else None.
        keep_empty: keep images without any valid annotation (FILTER_EMPTY_ANNOTATIONS False).

    Returns:
        (records, counts by reason). Boxes are xyxy and inside the image. Crowds are dropped without being counted.
    """
    counts: Counter[str] = Counter()
    kept = []
    for given in records:
        record = with_size(given)
        if record["height"] is None:
            counts[WITHOUT_SIZE] += 1
            continue
        annotations = [a for a in given.get("annotations") or () if not (isinstance(a, dict) and is_crowd(a))]
        usable = [_for_training(a, record, num_classes, mask_format, counts) for a in annotations]
        record["annotations"] = [annotation for annotation in usable if annotation is not None]
        if record["annotations"] or keep_empty:
            kept.append(record)
        elif annotations:
            counts[NOTHING_LEFT] += 1
        else:
            counts[ONLY_CROWDS if given.get("annotations") else WITHOUT_ANNOTATION] += 1
    return kept, counts


def clean_test_records(
    records: Iterable[Record], num_classes: int | None = None, *, masks: bool = False
) -> tuple[list[Record], Counter[str]]:
    """Return test records: all images, with crowds and the annotations that are valid for training too.

    Args:
        records: Detectron2's dataset records.
        num_classes: classes must be 0 ... num_classes - 1, if known.
        masks: drop objects without a valid mask; if False, masks are not checked.

    Returns:
        (records, counts by reason). Boxes are those of the records, unchanged, or xyxy if they had to be clipped;
        `iscrowd` is 0 or 1. `height` and `width` are None if neither the record nor the file has them.
    """
    counts: Counter[str] = Counter()
    cleaned = []
    for given in records:
        if "annotations" not in given:
            cleaned.append(given)
            continue
        record = with_size(given)
        annotations = [_for_test(a, record, num_classes, counts, masks=masks) for a in given["annotations"] or ()]
        record["annotations"] = [annotation for annotation in annotations if annotation is not None]
        cleaned.append(record)
    return cleaned, counts


def with_size(record: Record) -> Record:
    """Return a copy of a record with `height` and `width`, read from its file if missing, None if neither has them."""
    height, width = side(record.get("height")), side(record.get("width"))
    if height is None or width is None:
        try:
            height, width = image_size(record["file_name"]) if "file_name" in record else (None, None)
        except UnreadableImageError:
            height = width = None
    return {**record, "height": height, "width": width}


def is_crowd(annotation: Annotation) -> bool:
    """Return whether an annotation is a crowd: `iscrowd` or `ignore` is set, in any spelling."""
    return any(str(annotation.get(key) or 0).strip().lower() not in NO for key in ("iscrowd", "ignore"))


def _for_training(
    annotation: Any, record: Record, num_classes: int | None, mask_format: str | None, counts: Counter[str]
) -> Annotation | None:
    """Return an annotation for training, its box clipped to the image; None if invalid, with the reason counted."""
    corners = _valid_corners(annotation, record, num_classes, counts)
    if corners is None:
        return None
    segmentation = annotation.get("segmentation")
    size = record["height"], record["width"]
    if mask_format and (problem := mask_problem(segmentation, size, mask_format)):
        counts[problem] += 1
        return None
    usable: Any = {**annotation, "bbox": _inside(corners, record), "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    usable.pop("segmentation", None)
    if mask_format:
        usable["segmentation"] = valid_mask(segmentation, size)
    return cast(Annotation, usable)


def _for_test(
    annotation: Any, record: Record, num_classes: int | None, counts: Counter[str], *, masks: bool
) -> Annotation | None:
    """Return an annotation for testing; None, with the reason counted, if invalid."""
    corners = _valid_corners(annotation, record, num_classes, counts)
    if corners is None:
        return None
    usable: Any = {**annotation, "iscrowd": int(is_crowd(annotation))}
    if record["height"] is not None and _reach(corners, record) > EDGE_TOLERANCE:
        usable |= {"bbox": _inside(corners, record), "bbox_mode": BoxMode.XYXY_ABS}
    else:
        usable["bbox"] = [float(value) for value in annotation["bbox"]]
    if masks:
        size = record["height"], record["width"]
        if problem := mask_problem(annotation.get("segmentation"), size, "bitmask"):
            counts[problem] += 1
            return None
        usable["segmentation"] = valid_mask(annotation["segmentation"], size)
    return cast(Annotation, usable)


def _valid_corners(
    annotation: Any, record: Record, num_classes: int | None, counts: Counter[str]
) -> list[float] | None:
    """Return the box of an annotation, xyxy; None if invalid. Counts invalid and clipped boxes."""
    if not isinstance(annotation, dict):
        counts["annotations that are none"] += 1
        return None
    try:
        problem = _class_problem(annotation, num_classes) or _box_problem(annotation, record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        problem = "annotations that cannot be understood"
    if problem:
        counts[problem] += 1
        return None
    corners = _corners(annotation)
    if record["height"] is not None and _reach(corners, record) > EDGE_TOLERANCE:
        counts[CLIPPED] += 1
    return corners


def _class_problem(annotation: Any, num_classes: int | None) -> str | None:
    category = annotation.get("category_id")
    if not isinstance(category, numbers.Integral) or int(category) < 0:
        return "annotations without a class"
    if num_classes is not None and int(category) >= num_classes:
        return f"annotations of a class beyond the {num_classes} of the detector"
    return None


def _box_problem(annotation: Any, record: Record) -> str | None:
    if annotation.get("bbox_mode") not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return "boxes that are neither XYXY_ABS nor XYWH_ABS"
    try:
        box = _corners(annotation)
    except (KeyError, TypeError, ValueError, OverflowError):
        return "boxes that are not four numbers"
    if not all(math.isfinite(value) for value in box):
        return "boxes with coordinates that are not finite"
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return "boxes without area"
    if record["height"] is None:
        return None
    if right <= 0 or bottom <= 0 or left >= record["width"] or top >= record["height"]:
        return "boxes outside the image"
    return None


def _reach(corners: list[float], record: Record) -> float:
    """Return by how many pixels a box exceeds its image."""
    return max(abs(a - b) for a, b in zip(_inside(corners, record), corners, strict=True))


def _inside(corners: list[float], record: Record) -> list[float]:
    left, top, right, bottom = corners
    return [max(left, 0.0), max(top, 0.0), min(right, record["width"]), min(bottom, record["height"])]


def _corners(annotation: Any) -> list[float]:
    box = [float(value) for value in annotation["bbox"]]
    if len(box) != 4:
        raise ValueError(f"{len(box)} numbers")
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        return box
    # In float32, as in Detectron2; a number beyond its range becomes infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.array(box, np.float32)
        corners[2:] += corners[:2]
    return corners.tolist()
