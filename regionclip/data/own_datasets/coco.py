"""Datasets in COCO's and LVIS's formats: one file, or a folder with a file for each split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
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

_OTHER_KINDS = ("caption", "keypoint", "stuff", "panoptic", "image_info")
"""In the names of COCO's files that have no boxes of objects."""

_SPLIT_IN_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")


def files_of_splits(folder: Path) -> dict[str, Path]:
    """Return the annotation files of a folder by split; empty if it is no COCO dataset.

    Files are `train/_annotations.coco.json`, ... as Roboflow exports them, or `annotations/*train*.json`, ...
    """
    exported = {SPLIT_NAMES.get(file.parent.name.lower()): file for file in folder.glob("*/_annotations.coco.json")}
    # Instances first, then the shortest name: instances_train2017.json, not one of its excerpts.
    stock = {_split_of(file): file for file in sorted(folder.glob("annotations/*.json"), key=_rank, reverse=True)}
    return {split: file for split, file in (exported or stock).items() if split}


def _rank(path: Path) -> tuple[bool, int, str]:
    return not path.name.startswith("instances"), len(path.name), path.name


def _split_of(file: Path) -> str | None:
    found = _SPLIT_IN_NAME.search(file.stem.lower())
    return SPLIT_NAMES[found[1]] if found and not any(kind in file.stem for kind in _OTHER_KINDS) else None


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
    contents = _without_dummy(contents)
    first, *others = contents.values()
    names = [category["name"] for category in first.categories]
    for other in others:
        require_names(other, names, f"give all files the classes of {first.path}")
        if [id_key(category["id"]) for category in other.categories] != list(first.numbers()):
            expected, fix = f"the ids of {first.path} for its categories", "give all files the same ids"
            raise user_error(other.path, expected, "others", fix)
    is_lvis = any(_LVIS_KEYS & image.keys() for image in first.images)
    records = {}
    for split, content in contents.items():
        root = str(find_image_root(content, image_root, is_lvis=is_lvis))
        reader = lvis_records if is_lvis else coco_records
        records[split] = reader(content, content.numbers(), root)
    ids = tuple(category["id"] for category in first.categories)
    frequencies = tuple(frequency_of(category) for category in first.categories) if is_lvis else ()
    return OwnDataset(source, LVIS if is_lvis else COCO, tuple(names), records, ids, frequencies)


def read_coco_file(path: Path, image_root: Path | None = None) -> OwnDataset:
    """Read one annotation file, whose images are not divided into splits."""
    return read_coco(path, {ALL: path}, image_root)


def _without_dummy(contents: dict[str, AnnotationFile]) -> dict[str, AnnotationFile]:
    """Return files without a category that is only the supercategory of others, as Roboflow exports one."""
    used = {
        id_key(entry["category_id"])
        for content in contents.values()
        for entries in content.annotations.values()
        for entry in entries
    }
    categories = [category for content in contents.values() for category in content.categories]
    parents = {parent for category in categories if isinstance(parent := category.get("supercategory"), str)}
    return {
        split: replace(
            content,
            categories=[
                category
                for category in content.categories
                if id_key(category["id"]) in used
                or category["name"] not in parents
                or category.get("supercategory") == category["name"]
            ],
        )
        for split, content in contents.items()
    }


def find_image_root(content: AnnotationFile, given: Path | None = None, *, is_lvis: bool = False) -> Path:
    """Return the folder that the file names of an annotation file's images are relative to.

    Args:
        content: annotation file.
        given: the folder; None looks in the usual places near the file.
        is_lvis: the address of an image names its file, as in LVIS.

    Raises:
        UserError: the first image is not there.
    """
    first, folder = content.images[0], Path(content.path).parent
    for place in [given] if given else _usual_places(folder, Path(content.path)):
        if Path(_file_of(first, place, content.path, is_lvis)).is_file():
            return place
    expected = f"{_name_of(first)} in {given or f'{folder} or a folder next to it'}"
    fix = "name the folder of the images with --images"
    raise user_error(f"{content.path}: image {first['id']}", expected, "no such file", fix)


def _usual_places(folder: Path, file: Path) -> Iterator[Path]:
    """Yield folders near an annotation file: its own, `images`, and folders named after its split."""
    near = [folder, folder.parent, folder / "images", folder.parent / "images"]
    yield from near
    split = _split_of(file)
    for place in near if split else ():
        for inner in sorted(place.iterdir()) if place.is_dir() else ():
            if inner.is_dir() and _split_of(inner) == split:
                yield from (inner, inner / "images")


def _name_of(image: Entry) -> Any:
    # LVIS names images by their address.
    return image.get("file_name") or image.get("coco_url") or id_key(image["id"])


def _file_of(image: Entry, root: Path, source: str, is_lvis: bool) -> str:
    address = image.get("coco_url")
    if is_lvis and isinstance(address, str) and address:
        return str(Path(root, *address.split("/")[-2:]))
    return image_file(image, str(root), source)
