"""COCO's annotation format as Detectron2's dataset records."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from regionclip.errors import user_error

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def read_annotation_file(path: str | Path, *, what: str, fix: str, key: str = "categories") -> dict[str, Any]:
    """Return the content of a JSON file with `images` and a second list.

    Args:
        path: file to read.
        what: the format, for error messages.
        fix: what the user can do about a bad file.
        key: name of the second list.

    Raises:
        UserError: missing file, or another format.
    """
    if not Path(path).is_file():
        raise user_error(str(path), what, "no such file", fix)
    try:
        content = json.loads(Path(path).read_text())
        _ = content["images"][0]["id"], content[key][0].keys()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise user_error(str(path), what, f"{type(error).__name__}: {error}", fix) from error
    return content


def load_coco(annotation_file: str, image_root: str, class_names: Iterable[str], *, fix: str) -> list[Record]:
    """Read a COCO file into Detectron2's dataset records, by ascending image id.

    Annotations of a category or an image that the file does not list are left out, counted and
    reported once.

    Args:
        annotation_file: COCO JSON.
        image_root: folder of the images.
        class_names: what the categories have to be, by ascending id; they are numbered 0, 1, ...
        fix: what the user can do about a bad file.

    Raises:
        UserError: missing file, another format, or other categories.
    """
    content = read_annotation_file(annotation_file, what="COCO's JSON format", fix=fix)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names, wanted = [category["name"] for category in categories], list(class_names)
    if names != wanted:
        unknown = ", ".join(sorted(set(names) - set(wanted))[:3]) or f"{len(names)} of them"
        raise user_error(annotation_file, f"{len(wanted)} categories: {', '.join(wanted[:3])}, ...", unknown, fix)
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    annotations = annotations_by_image(content, annotation_file)
    return [
        {
            "file_name": str(Path(image_root, image["file_name"])),
            "height": image.get("height"),
            "width": image.get("width"),
            "image_id": image["id"],
            "annotations": [_annotation(a, contiguous[a["category_id"]]) for a in annotations[image["id"]]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def annotations_by_image(content: dict[str, Any], source: str) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image, those of unknown categories or images left out and logged."""
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    left_out: Counter[str] = Counter()
    for annotation in content.get("annotations") or ():
        if not isinstance(annotation, dict):
            left_out["that are none"] += 1
        elif annotation.get("category_id") not in categories:
            left_out["of unknown categories"] += 1
        elif annotation.get("image_id") not in by_image:
            left_out["of unknown images"] += 1
        else:
            by_image[annotation["image_id"]].append(annotation)
    for reason, count in left_out.items():
        logger.warning("%s: left out %d annotations %s", source, count, reason)
    return by_image


def _annotation(annotation: dict[str, Any], category: int) -> dict[str, Any]:
    entry = {
        "bbox": annotation.get("bbox", ()),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": annotation.get("iscrowd", 0),
    }
    if "segmentation" in annotation:
        entry["segmentation"] = annotation["segmentation"]
    return entry
