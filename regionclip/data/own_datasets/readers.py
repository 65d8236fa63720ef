"""What the readers share: supervision's parsers, and records of boxes."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from numpy.typing import NDArray

from regionclip.data.images import UnreadableImageError, image_size
from regionclip.errors import user_error
from regionclip.records import Record

Object = tuple[int, list[float]]
"""Class index, and box x y width height in pixels."""

BOX_DECIMALS = 3
"""Decimals of a box in pixels: supervision's float32 is not more exact, and whole pixels stay whole."""


def supervision_formats(name: str) -> Any:
    """Return supervision's module for a format; raises `UserError` if the library is not installed."""
    try:
        return import_module(f"supervision.dataset.formats.{name}")
    except ImportError as error:
        fix = 'pip install "regionclip[data]"'
        raise user_error("--data", "the library supervision, which reads YOLO and VOC", str(error), fix) from error


def box_xywh(corners: NDArray[Any]) -> list[float]:
    """Return a box x1 y1 x2 y2 as x y width height, with `BOX_DECIMALS`."""
    left, top, right, bottom = (round(float(edge), BOX_DECIMALS) for edge in corners)
    return [left, top, round(right - left, BOX_DECIMALS), round(bottom - top, BOX_DECIMALS)]


def size_of(image: Path) -> tuple[int | None, int | None]:
    """Return (height, width) of an image; None for one that cannot be read, which is reported when it is needed."""
    try:
        return image_size(image)
    except UnreadableImageError:
        return None, None


def as_record(image: Path, image_id: object, size: tuple[int | None, int | None], objects: Iterable[Object]) -> Record:
    """Return Detectron2's record of an image of `size` (height, width) and its objects."""
    return {
        "file_name": str(image),
        "image_id": image_id,
        "height": size[0],
        "width": size[1],
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0} for index, box in objects
        ],
    }
