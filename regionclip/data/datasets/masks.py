"""Validation of masks in annotations and results: polygons and RLE, before pycocotools sees them."""

from __future__ import annotations

import math
from typing import Any

from pycocotools import mask as mask_tools

RunLengths = dict[str, Any]
Size = tuple[int | None, int | None]
"""(height, width) in pixels; None if unknown, then masks cannot be checked."""

SMALLEST_POLYGON = 6
"""Number of coordinates of a triangle."""


def mask_problem(segmentation: Any, size: Size, mask_format: str) -> str | None:
    """Return why a mask is invalid, or None.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...] or RLE.
        size: of the image.
        mask_format: "polygon", or "bitmask" to allow RLE.
    """
    if not segmentation:
        return "annotations without mask"
    if isinstance(segmentation, dict) and mask_format == "polygon":
        return "run-length masks (INPUT.MASK_FORMAT bitmask takes them)"
    if valid_mask(segmentation, size) is not None:
        return None
    if isinstance(segmentation, dict):
        return "run-length masks that are broken or of another size"
    return "masks with broken polygons"


def valid_mask(segmentation: Any, size: Size) -> list[list[float]] | RunLengths | None:
    """Return RLE unchanged, or the polygons that have an area; None if it is no valid mask of the image."""
    if None in size:
        return None
    if isinstance(segmentation, dict):
        return segmentation if _decodes(segmentation, list(size)) else None
    if not isinstance(segmentation, list | tuple):
        return None
    polygons = [polygon for polygon in map(_polygon, segmentation) if polygon]
    return polygons or None


def as_run_lengths(mask: list[list[float]] | RunLengths, height: int, width: int) -> RunLengths:
    """Return a mask from `valid_mask` as compressed RLE."""
    if isinstance(mask, list):
        return mask_tools.merge(mask_tools.frPyObjects(mask, height, width))
    if isinstance(mask["counts"], list):
        return mask_tools.frPyObjects(mask, height, width)
    return mask


def _polygon(points: Any) -> list[float] | None:
    try:
        numbers = [float(value) for value in points]
    except (TypeError, ValueError, OverflowError):
        return None
    is_whole = len(numbers) >= SMALLEST_POLYGON and len(numbers) % 2 == 0 and not isinstance(points, str)
    return numbers if is_whole and all(math.isfinite(value) for value in numbers) else None


def _decodes(run_lengths: RunLengths, size: list[int | None]) -> bool:
    sides, counts = run_lengths.get("size"), run_lengths.get("counts")
    if not isinstance(sides, list | tuple) or list(sides) != size:
        return False
    try:
        if isinstance(counts, list):
            return all(count >= 0 for count in counts) and sum(counts) == math.prod(side or 0 for side in size)
        return list(mask_tools.decode(run_lengths).shape) == size
    except (TypeError, ValueError, KeyError):
        return False
