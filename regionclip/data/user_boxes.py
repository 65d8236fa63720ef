"""User boxes (box prompts): checked against the image, and read from files."""

from __future__ import annotations

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regionclip.data.datasets.annotation_file import id_key, read_json, side, unique_images
from regionclip.data.datasets.declared_size import size_problem
from regionclip.data.image_sources import VIDEO_ENDINGS
from regionclip.errors import user_error
from regionclip.files import resolve_path
from regionclip.records import Record

EXPECTED, FIX = "a list of boxes for each image", "see docs/features.md for the formats"

FRACTIONS_BELOW = 1.5
"""Boxes whose coordinates are all below this are fractions of the image, not pixels."""


class ImageBoxes(list[list[float]]):
    """User boxes of an image, xyxy, in file order."""

    def __init__(self, rows: Iterable[list[float]] = (), sizes: Iterable[tuple[int, int]] = ()) -> None:
        """Store boxes, and the sizes (height, width) of the image according to their file."""
        super().__init__(rows)
        self.sizes = set(sizes)

    def joined(self, others: ImageBoxes) -> ImageBoxes:
        """Return these boxes followed by others of the same image, with the sizes of both."""
        return ImageBoxes([*self, *others], self.sizes | others.sizes)


def check_boxes(boxes: ArrayLike | Tensor, size: tuple[int, int], what: str = "boxes") -> Tensor:
    """Return boxes as float32 [N, 4], xyxy in pixels, clipped to the image.

    Args:
        boxes: [N, 4], x1 y1 x2 y2 in pixels of the image.
        size: (height, width) of the image.
        what: their origin, for messages.

    Raises:
        UserError: boxes of an image of another size, wrong shape, not finite, without area, outside the
            image; another coordinate order or fractions are named if certain.
    """
    height, width = size
    if isinstance(boxes, ImageBoxes):
        _require_size(boxes.sizes, size, what)
    table = _table(boxes, what)
    if not torch.isfinite(table).all():
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0])
        raise user_error(f"{what}, row {row}", "finite numbers", str(table[row].tolist()), "remove or correct it")
    if len(table) and max(height, width) > FRACTIONS_BELOW >= float(table.abs().max()):
        actual = f"numbers up to {float(table.max()):g}"
        raise user_error(what, "pixels of the image", f"{actual}, as of fractions", "multiply by width and height")
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
        expected, actual = f"boxes in the image of {width} x {height} pixels", str(table[row].tolist())
        raise user_error(f"{what}, row {row}", expected, actual, "remove it, or take the image it belongs to")
    return clipped


def _require_size(sizes: Iterable[tuple[int, int]], size: tuple[int, int], what: str) -> None:
    for declared in sizes:
        if problem := size_problem(declared, size):
            raise user_error(what, "boxes of the image as it is", problem, "scale the boxes, or take their image")


def read_boxes(path: str | Path) -> dict[str, ImageBoxes]:
    """Return the boxes in a file, xyxy, by image file name.

    Supported are JSON `{"photo.jpg": [[x1, y1, x2, y2], ...]}`; COCO's JSON with `images` and
    `annotations`, whose boxes are x, y, width, height; and npz with an array [N, 4] for each image.
    A video frame is `video.mp4#12`, or in COCO's JSON an image with `frame`.

    Raises:
        UserError: missing or unreadable file, another format, or an invalid box, with its entry named.
    """
    place = resolve_path(path)
    if not place.is_file():
        raise user_error(f"boxes {path}", "a JSON or npz file", "no such file", "correct the path")
    content = _read_arrays(place, path) if place.suffix == ".npz" else read_json(place, what=EXPECTED, fix=FIX)
    if not isinstance(content, dict):
        raise user_error(f"boxes {path}", EXPECTED, f"a JSON {type(content).__name__}", FIX)
    if "images" in content and "annotations" in content:
        return _from_coco(content, f"boxes {path}")
    boxes = {}
    for name, rows in content.items():
        if not isinstance(rows, list):
            raise user_error(f"boxes {path}: {name}", "a list of boxes", repr(rows)[:80], FIX)
        boxes[name] = ImageBoxes(_numbers(row, f"boxes {path}: {name}, row {i}") for i, row in enumerate(rows))
    return boxes


def _read_arrays(place: Path, path: str | Path) -> dict[str, Any]:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        actual = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise user_error(f"boxes {path}", EXPECTED, actual, FIX) from error


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


def image_key(image: dict[str, Any]) -> str:
    """Return the name of an image of a COCO file; for a frame written by `detect` with its index: `v.mp4#12`."""
    name, frame = image["file_name"], image.get("frame")
    return f"{name}#{frame}" if frame is not None and Path(name).suffix.lower() in VIDEO_ENDINGS else name


def _from_coco(content: dict[str, Any], source: str) -> dict[str, ImageBoxes]:
    boxes: dict[str, ImageBoxes] = {}
    of_image: dict[str | None, ImageBoxes] = {}
    for image in unique_images(content["images"], source):
        name = image.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise user_error(f"{source}: image {image['id']}", "a file_name", repr(name), "write the name of its file")
        own = of_image[id_key(image["id"])] = boxes.setdefault(image_key(image), ImageBoxes())
        height, width = side(image.get("height")), side(image.get("width"))
        if height and width:
            own.sizes.add((height, width))
    annotations = [] if content["annotations"] is None else content["annotations"]
    if not isinstance(annotations, list):
        raise user_error(f"{source}: annotations", "a list", type(annotations).__name__, FIX)
    for number, annotation in enumerate(annotations):
        what = f"{source}: annotations[{number}]"
        if not isinstance(annotation, dict):
            raise user_error(what, "an annotation", repr(annotation)[:80], "remove it")
        what += f" (id {annotation['id']})" if "id" in annotation else ""
        image_id = annotation.get("image_id")
        if id_key(image_id) not in of_image:
            raise user_error(what, "the image_id of an image in the file", repr(image_id), "correct or remove it")
        x, y, *sides = _numbers(annotation.get("bbox"), what)
        of_image[id_key(image_id)].append([x, y, x + sides[0], y + sides[1]])
    return {name: own for name, own in boxes.items() if own}


def _numbers(row: Any, what: str) -> list[float]:
    try:
        numbers = [float(number) for number in row] if isinstance(row, list | tuple) else []
    except (ValueError, TypeError, OverflowError):
        numbers = []
    if len(numbers) != 4:
        raise user_error(
            what, "a box of four numbers", "none" if row is None else repr(row)[:80], "correct or remove it"
        )
    return numbers


def with_user_boxes(records: Sequence[Record], names: Sequence[str], path: str | Path) -> list[Record]:
    """Return Detectron2's records with the `user_boxes` of a file (`ImageBoxes`); an image that it lacks has none.

    Args:
        records: of N images.
        names: N unique names, with subfolders.
        path: file for `read_boxes`.

    Raises:
        UserError: as `read_boxes` and `boxes_by_image`.
    """
    files = {name: Path(record["file_name"]) for name, record in zip(names, records, strict=True)}
    boxes = boxes_by_image(read_boxes(path), files)
    return [{**record, "user_boxes": boxes[name]} for name, record in zip(names, records, strict=True)]


def boxes_by_image(boxes: dict[str, ImageBoxes], files: Mapping[str, Path]) -> dict[str, ImageBoxes]:
    """Return the boxes of each image by its name; images that are not listed have none.

    Args:
        boxes: from `read_boxes`, by path, full name, its last parts, or without extension.
        files: paths of the images, by name with subfolders.

    Raises:
        UserError: boxes of an unknown image, or that could belong to several images.
    """
    by_end: dict[str, set[str]] = defaultdict(set)
    by_target: dict[str, set[str]] = defaultdict(set)
    for name, file in files.items():
        by_target[os.path.realpath(file)].add(name)
        for end in _ends(name):
            by_end[end].add(name)
            by_end[str(Path(end).with_suffix(""))].add(name)
    by_place = {_absolute(file): {name} for name, file in files.items()}
    result = {name: ImageBoxes() for name in files}
    for key, rows in boxes.items():
        path = os.path.normpath(key if "/" in key else key.replace("\\", "/"))  # the latter is a Windows path
        named = {name for name in (key, path) if name in result}
        found = named or by_place.get(_absolute(path)) or by_target.get(os.path.realpath(path))
        # A file may list more folders than the run has, but not another image of this machine.
        if not found and not (Path(path).is_absolute() and Path(path).exists()):
            found = next((by_end[end] for end in _ends(path) if end in by_end), None)
        if not found or len(found) > 1:
            actual = "none" if not found else f"several: {', '.join(sorted(found)[:3])}"
            fix = "correct the name, or write more of its folders" if found else "correct the name, or leave it out"
            raise user_error(f"boxes of {key}", "one image of this name", actual, fix)
        (name,) = found
        result[name] = result[name].joined(rows)
    return result


def _ends(name: str) -> list[str]:
    """Return the suffixes of a path by parts, the longest first."""
    parts = Path(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`
