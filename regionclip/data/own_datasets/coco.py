"""Datasets in COCO's and LVIS's formats: one file, or a folder with a file for each split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from regionclip.data.datasets.annotation_file import AnnotationFile, Entry, id_key, read_annotations
from regionclip.data.datasets.coco_json import coco_records, image_file, require_names
from regionclip.data.datasets.lvis import frequency_of, lvis_records
from regionclip.data.own_datasets.dataset import ALL, SPLIT_NAMES, OwnDataset
from regionclip.errors import user_error

COCO, LVIS = "COCO", "LVIS"

FIX = "correct the file, or export the dataset again"

_LVIS_KEYS = {"neg_category_ids", "not_exhaustive_category_ids"}

_SPLIT_IN_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")


def files_of_splits(folder: Path) -> dict[str, Path]:
    """Return the annotation files of a folder by split; empty if it is no COCO dataset.

    Files are `train/_annotations.coco.json`, ... as Roboflow exports them, or `annotations/*train*.json`, ...
    """
    exported = {SPLIT_NAMES.get(file.parent.name.lower()): file for file in folder.glob("*/_annotations.coco.json")}
    # The shortest name: instances_train2017.json, not one of its excerpts.
    stock = {_split_of(file): file for file in sorted(folder.glob("annotations/*.json"), key=_by_length, reverse=True)}
    return {split: file for split, file in (exported or stock).items() if split}


def _by_length(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _split_of(file: Path) -> str | None:
    found = _SPLIT_IN_NAME.search(file.stem.lower())
    return SPLIT_NAMES[found[1]] if found and "caption" not in file.stem and "keypoint" not in file.stem else None


def read_coco(source: Path, files: dict[str, Path], image_root: Path | None = None) -> OwnDataset:
    """Read annotation files in COCO's or LVIS's format.

    Args:
        source: what the user named.
        files: annotation file by split, or the one of `ALL`.
        image_root: folder of the images; None looks for it near the file.

    Raises:
        UserError: unreadable file, files with different classes, or images that are nowhere.
    """
    contents = {split: read_annotations(file, what="COCO's JSON format", fix=FIX) for split, file in files.items()}
    first, *others = contents.values()
    names = [category["name"] for category in first.categories]
    for other in others:
        require_names(other, names, f"give all files the classes of {first.path}")
    is_lvis = any(_LVIS_KEYS & image.keys() for image in first.images)
    records = {}
    for split, content in contents.items():
        root = str(image_root or find_image_root(content))
        reader = lvis_records if is_lvis else coco_records
        records[split] = reader(content, content.numbers(), root)
    ids = tuple(category["id"] for category in first.categories)
    frequencies = tuple(frequency_of(category) for category in first.categories) if is_lvis else ()
    return OwnDataset(source, LVIS if is_lvis else COCO, tuple(names), records, ids, frequencies)


def read_coco_file(path: Path, image_root: Path | None = None) -> OwnDataset:
    """Read one annotation file, whose images are not divided into splits."""
    return read_coco(path, {ALL: path}, image_root)


def find_image_root(content: AnnotationFile) -> Path:
    """Return the folder near an annotation file that the file names of its images are relative to.

    Raises:
        UserError: the first image is in none of the usual places.
    """
    folder = Path(content.path).parent
    near = [folder, folder.parent]
    places = [*near, *(place / "images" for place in near), *_folders_named_after_split(near, Path(content.path))]
    first = content.images[0]
    for place in places:
        if Path(_file_of(first, place, content.path)).is_file():
            return place
    expected, actual = f"{_name_of(first)} in {folder} or a folder next to it", "no such file"
    fix = "name the folder of the images with --images"
    raise user_error(f"{content.path}: image {first['id']}", expected, actual, fix)


def _folders_named_after_split(places: list[Path], file: Path) -> list[Path]:
    split = _split_of(file)
    found = [path for place in places for path in sorted(place.iterdir()) if path.is_dir()] if split else []
    return [inner for path in found if str(split) in path.name.lower() for inner in (path, path / "images")]


def _name_of(image: Entry) -> Any:
    # LVIS names images by their address.
    return image.get("file_name") or image.get("coco_url") or id_key(image["id"])


def _file_of(image: Entry, root: Path, source: str) -> str:
    if image.get("file_name") or "coco_url" not in image:
        return image_file(image, str(root), source)
    return str(root / "/".join(str(image["coco_url"]).split("/")[-2:]))
