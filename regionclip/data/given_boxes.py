"""Boxes that a user gives: checked against the picture, and read from files."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regionclip.errors import user_error
from regionclip.files import resolve_path

FRACTIONS_BELOW = 1.5
"""Boxes that are all smaller than so many pixels are fractions of the picture, not pixels."""


def check_boxes(boxes: ArrayLike | Tensor, size: tuple[int, int], what: str = "boxes") -> Tensor:
    """Return boxes as float32 [N, 4], xyxy in pixels, cut at the edges of the picture.

    Args:
        boxes: [N, 4], x1 y1 x2 y2 in pixels of the picture.
        size: (height, width) of the picture.
        what: where they come from, for messages.

    Raises:
        UserError: another shape, not finite, no area, beside the picture; other orders of the
            numbers and fractions are named where they are certain.
    """
    height, width = size
    table = _table(boxes, what)
    if not torch.isfinite(table).all():
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0])
        raise user_error(f"{what}, row {row}", "finite numbers", str(table[row].tolist()), "remove or correct it")
    if len(table) and max(height, width) > FRACTIONS_BELOW >= float(table.abs().max()):
        actual = f"numbers up to {float(table.max()):g}"
        raise user_error(what, "pixels of the picture", f"{actual}, as of fractions", "multiply by width and height")
    flat = ((table[:, 2:] <= table[:, :2]).any(dim=1)).nonzero()[:, 0]
    if len(flat):
        row = int(flat[0])
        fix = "give the left, top, right and bottom edge"
        if bool((table[:, 2:] > 0).all()):
            fix += "; if these are x, y, width, height, add x and y to the last two"
        expected, actual = "x1 < x2 and y1 < y2", str(table[row].tolist())
        raise user_error(f"{what}, row {row}", expected, actual, fix)
    clipped = table.clone()
    clipped[:, 0::2] = clipped[:, 0::2].clamp(0, width)
    clipped[:, 1::2] = clipped[:, 1::2].clamp(0, height)
    outside = ((clipped[:, 2:] <= clipped[:, :2]).any(dim=1)).nonzero()[:, 0]
    if len(outside):
        row = int(outside[0])
        expected, actual = f"boxes in the picture of {width} x {height} pixels", str(table[row].tolist())
        raise user_error(f"{what}, row {row}", expected, actual, "remove it, or take the picture it belongs to")
    return clipped


def read_boxes(path: str | Path) -> dict[str, list[Any]]:
    """Return the boxes xyxy of pictures, by their file names, from a file.

    Understood are JSON `{"picture.jpg": [[x1, y1, x2, y2], ...]}`; COCO's JSON with `images` and
    `annotations`, whose boxes are x, y, width, height; and npz with an array [N, 4] for each picture.

    Raises:
        UserError: missing or unreadable file, or another format.
    """
    place, fix = resolve_path(path), "see docs/features.md for the formats"
    if not place.is_file():
        raise user_error(f"boxes {path}", "a JSON or npz file", "no such file", "correct the path")
    try:
        if place.suffix == ".npz":
            with np.load(place, allow_pickle=False) as arrays:
                return {name: [_numbers(row) for row in arrays[name].tolist()] for name in arrays.files}
        content = json.loads(place.read_text(encoding="utf-8"))
        if "images" in content and "annotations" in content:
            return _from_coco(content)
        return {str(name): [_numbers(row) for row in rows] for name, rows in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        actual = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise user_error(f"boxes {path}", "a list of boxes for each picture", actual, fix) from error


def _table(boxes: ArrayLike | Tensor, what: str) -> Tensor:
    try:
        table = torch.as_tensor(np.asarray(boxes, dtype=np.float32) if not isinstance(boxes, Tensor) else boxes)
    except (ValueError, TypeError) as error:
        raise user_error(what, "numbers [N, 4]", str(error), "give four numbers for each box") from error
    table = table.detach().float().cpu()
    if table.numel() == 0:
        return table.reshape(0, 4)
    if table.ndim != 2 or table.shape[1] != 4:
        raise user_error(what, "numbers [N, 4]", str(list(table.shape)), "give four numbers for each box, in a list")
    return table


def _from_coco(content: dict[str, Any]) -> dict[str, list[Any]]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list[Any]] = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, width, height = _numbers(annotation["bbox"])
        boxes[names[annotation["image_id"]]].append([x, y, x + width, y + height])
    return dict(boxes)


def _numbers(row: Any) -> list[float]:
    if isinstance(row, str | dict) or len(row) != 4:
        raise ValueError(f"no box: {row}")
    return [float(number) for number in row]


def boxes_by_picture(boxes: dict[str, list[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the boxes of each picture by the picture's name; pictures that are not listed have none.

    Args:
        boxes: of `read_boxes`, by whole name, by its last parts, or without ending.
        names: of the pictures, with sub-folders.

    Raises:
        UserError: boxes of a picture that is not there, or that could belong to several.
    """
    by_end: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = Path(name).parts
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            by_end[end].add(name)
            by_end[str(Path(end).with_suffix(""))].add(name)
    result: dict[str, list[Any]] = {name: [] for name in names}
    for key, rows in boxes.items():
        # A file may name more folders than the run knows of.
        parts = Path(key).parts
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        found = {key} if key in result else next((by_end[end] for end in ends if end in by_end), set())
        if len(found) != 1:
            actual = "none" if not found else f"several: {', '.join(sorted(found)[:3])}"
            fix = "correct the name, or write more of its folders" if found else "correct the name, or leave it out"
            raise user_error(f"boxes of {key}", "one picture of this name", actual, fix)
        result[found.pop()] += rows
    return result
