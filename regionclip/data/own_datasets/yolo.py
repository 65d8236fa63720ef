"""Datasets of YOLO: `data.yaml` with class names and image folders, and a text file of boxes next to each image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from regionclip.data.image_listing import LeftOut, files_in_folder
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.data.own_datasets.dataset import ALL, SPLIT_NAMES, OwnDataset, needed_splits
from regionclip.data.own_datasets.readers import Object, as_record, box_xywh, size_of, supervision_formats
from regionclip.errors import user_error
from regionclip.files import expand_home, read_lines, read_text
from regionclip.records import Record

YOLO = "YOLO"

MAX_FRACTION = 2.0
"""Above this, a value is evidently in pixels."""

_FIX = "correct data.yaml (docs/own_data.md)"


def read_yolo(path: Path, image_root: Path | None = None, split: str = ALL) -> OwnDataset:
    """Read a YOLO dataset by its `data.yaml`.

    A line of a label file is read by supervision: class index, then a box or a polygon as fractions of the image.
    Keypoints (`kpt_shape`) are left out. An image without a label file has no objects.

    Args:
        path: the YAML file.
        image_root: folder that replaces the YAML's `path`.
        split: what is needed, as in `needed_splits`; other splits are not opened.

    Raises:
        UserError: unreadable file, a line that is no box, or an unknown class; the message names file and line.
    """
    content = _read_yaml(path)
    names = _names(content.get("names"), path)
    root = image_root or _root(content.get("path"), path)
    splits = {
        split: [name for name in _as_list(content[key]) if name]
        for key, split in SPLIT_NAMES.items()
        if content.get(key)
    }
    if not splits:
        raise user_error(str(path), "image folders for train or val", "neither", _FIX)
    keypoints = _keypoint_values(content.get("kpt_shape"), path)
    needed = needed_splits(splits, split)
    records = {name: _records(_images(splits[name], root, path), names, keypoints) for name in needed}
    return OwnDataset(path, YOLO, names, records)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path, "YOLO's data.yaml"))
    except yaml.YAMLError as error:
        raise user_error(str(path), "readable YAML", " ".join(str(error).split()), "correct the file") from error
    if not isinstance(content, dict):
        raise user_error(str(path), "a YAML mapping with names, train and val", type(content).__name__, _FIX)
    return content


def _names(given: Any, path: Path) -> tuple[str, ...]:
    if isinstance(given, dict) and sorted(map(str, given)) == sorted(map(str, range(len(given)))):
        given = [given[key] for key in sorted(given, key=int)]
    if not isinstance(given, list) or not given:
        actual = f"{given!r}"[:100]
        raise user_error(f"{path}: names", "a list of class names, or a mapping from 0, 1, ... to them", actual, _FIX)
    return tuple(str(name) for name in given)


def _keypoint_values(shape: Any, path: Path) -> int:
    """Return how many values of a pose dataset follow each box: `kpt_shape` is [keypoints, 2 or 3]."""
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape)):
        raise user_error(f"{path}: kpt_shape", "[number of keypoints, 2 or 3]", repr(shape)[:60], _FIX)
    return int(shape[0] * shape[1])


def _root(given: Any, path: Path) -> Path:
    if not given:
        return path.parent
    places = [expand_home(str(given)), path.parent / str(given)]
    return next((place for place in reversed(places) if place.is_dir()), path.parent)


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _images(entries: Iterable[str], root: Path, source: Path) -> list[Path]:
    """Return the images of folders, and of text files that list them."""
    images: list[Path] = []
    for entry in entries:
        # An export of Roboflow writes ../train/images for train/images next to the file.
        places = [root / entry, root / entry.removeprefix("../")]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise user_error(f"{source}: {entry}", f"a folder of images in {root}", "no such folder", _FIX)
        if place.is_dir():
            images += files_in_folder(place, IMAGE_ENDINGS, LeftOut())
        elif place.suffix == ".txt":
            images += [place.parent / line for line in read_lines(place, "images")]
        else:
            raise user_error(f"{source}: {entry}", "a folder of images, or a text file that lists them", "a file", _FIX)
    return images


def label_file(image: Path) -> Path:
    """Return the label file of an image: in `labels` where the image is in `images`, or next to the image."""
    parts = list(image.parent.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        found = Path(*parts[:place], "labels", *parts[place + 1 :], f"{image.stem}.txt")
        if found.is_file():
            return found
    return image.with_suffix(".txt")


def _records(images: list[Path], names: tuple[str, ...], keypoints: int) -> list[Record]:
    labels = [label_file(image) for image in images]
    if images and not any(label.is_file() for label in labels):
        expected, fix = f"label files such as {labels[0]}", "put them into `labels` next to `images`"
        raise user_error(f"{images[0].parent}: {len(images)} images", expected, "none", fix)
    records = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=1):
        size = size_of(image)
        objects = _objects(label, names, size, keypoints) if label.is_file() else []
        records.append(as_record(image, number, size, objects))
    return records


def _objects(label: Path, names: tuple[str, ...], size: tuple[int | None, int | None], keypoints: int) -> list[Object]:
    read_line = supervision_formats("yolo").yolo_annotations_to_detections
    height, width = size
    objects = []
    for number, line in enumerate(read_text(label, "YOLO's boxes").splitlines(), start=1):
        if not line.strip():
            continue
        where, values = f"{label}, line {number}", line.split()
        if keypoints and len(values) == 5 + keypoints:
            values = values[:5]
        try:
            found = read_line([" ".join(values)], (width or 1, height or 1), with_masks=False)
            if max(abs(float(value)) for value in values[1:5]) > MAX_FRACTION:
                raise ValueError("not fractions of the image")
        except ValueError as error:
            fix = "write class x y w h, the box as fractions of the image, or a polygon"
            raise user_error(where, "a class index and a box", f"{line[:60]!r} ({error})", fix) from error
        index = int(found.class_id[0])
        if not 0 <= index < len(names):
            fix = "correct the line, or the names in data.yaml"
            raise user_error(where, f"a class index of 0 to {len(names) - 1}", str(index), fix)
        objects.append((index, box_xywh(found.xyxy[0])))
    return objects
