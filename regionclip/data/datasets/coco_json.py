"""COCO's annotation format as Detectron2's dataset records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from detectron2.structures import BoxMode

from regionclip.data.datasets.annotation_file import AnnotationFile, Entry, id_key, read_annotations, side
from regionclip.errors import user_error
from regionclip.records import Annotation, Record

KEPT = ("iscrowd", "ignore", "segmentation", "area")
"""Annotation keys that a record keeps unchanged, besides box and class."""


def load_coco(annotation_file: str, image_root: str, class_names: Iterable[str], *, fix: str) -> list[Record]:
    """Read a COCO file into Detectron2's dataset records, by ascending image id.

    Annotations whose category or image is not in the file are dropped, counted and logged once.

    Args:
        annotation_file: COCO JSON.
        image_root: folder of the images.
        class_names: expected category names, by ascending id; they are numbered 0, 1, ...
        fix: what the user can do about an invalid file.

    Raises:
        UserError: missing file, another format, duplicate ids, or other categories.
    """
    content = read_annotations(annotation_file, what="COCO's JSON format", fix=fix)
    require_names(content, list(class_names), fix)
    return coco_records(content, content.numbers(), image_root)


def require_names(content: AnnotationFile, wanted: list[str], fix: str) -> None:
    """Raise `UserError` unless the categories of a file, by ascending id, have these names."""
    names = [category["name"] for category in content.categories]
    if names != wanted:
        unknown = ", ".join(sorted(set(names) - set(wanted))[:3]) or f"{len(names)} of them"
        raise user_error(content.path, f"{len(wanted)} categories: {', '.join(wanted[:3])}, ...", unknown, fix)


def coco_records(content: AnnotationFile, classes: Mapping[str, int], image_root: str | None) -> list[Record]:
    """Return the records of a file.

    Args:
        content: from `read_annotations`.
        classes: class index by `id_key` of a category; annotations of others are dropped.
        image_root: folder of the images; None omits file names.

    Raises:
        UserError: an image without a file name.
    """
    return [
        {
            **({} if image_root is None else {"file_name": image_file(image, image_root, content.path)}),
            "height": side(image.get("height")),
            "width": side(image.get("width")),
            "image_id": image["id"],
            "annotations": [
                _annotation(annotation, classes[key])
                for annotation in content.annotations[str(id_key(image["id"]))]
                if (key := str(id_key(annotation["category_id"]))) in classes
            ],
        }
        for image in content.images
    ]


def image_file(image: Entry, image_root: str, source: str) -> str:
    """Return the path of an image; backslashes are separators if no file has that literal name.

    Raises:
        UserError: the entry has no file name.
    """
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise user_error(f"{source}: image {image['id']}", "a file_name", repr(name), "write the name of its file")
    place = Path(image_root, name)
    if "\\" in name and not place.exists():
        place = Path(image_root, name.replace("\\", "/"))
    return str(place)


def _annotation(annotation: Entry, category: int) -> Annotation:
    entry: Annotation = {"bbox": annotation.get("bbox", ()), "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
    entry |= cast(Annotation, {key: annotation[key] for key in KEPT if key in annotation})
    if keypoints := _keypoints(annotation.get("keypoints")):
        entry["keypoints"] = keypoints
    return entry


def _keypoints(values: Any) -> list[float] | None:
    """Return keypoints in Detectron2's convention, shifted by 0.5: COCO keypoints are pixel indices."""
    is_whole = isinstance(values, list) and len(values) % 3 == 0
    if not is_whole or not all(isinstance(value, int | float) for value in values):
        return None
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(values)]
