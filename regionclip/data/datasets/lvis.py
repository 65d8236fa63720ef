"""LVIS: the open-vocabulary (866 base, 337 novel), fully supervised and stock datasets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BoxMode

from regionclip.data.datasets.annotation_file import AnnotationFile, Entry, id_key, read_annotations, side
from regionclip.data.datasets.coco_json import image_file
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.errors import user_error
from regionclip.records import Record

ANNOTATION_FILES = {
    "train": "lvis_v1_train.json",
    "val": "lvis_v1_val.json",
    "test_dev": "lvis_v1_image_info_test_dev.json",
    "test_challenge": "lvis_v1_image_info_test_challenge.json",
}
"""Annotation file by split."""

MAX_ANNOTATIONS_UPSTREAM = 500
"""Upstream truncates the annotations of an image to this number."""

FIX = "download LVIS v1 (datasets/README.md)"
"""Fix for a missing or unexpected annotation file."""

RARE = "r"

FREQUENCIES = {RARE: 10, "c": 100, "f": math.inf}
"""Frequency groups, with the maximum number of training images per class."""

CLASS_LISTS: tuple[Literal["not_exhaustive_category_ids", "neg_category_ids"], ...] = (
    "not_exhaustive_category_ids",
    "neg_category_ids",
)
"""Per image: classes not annotated exhaustively, and classes verified as absent."""


def register() -> None:
    """Register `lvis_v1_{train,val,test_dev,test_challenge}`, also with the suffix `_fullysup`.

    Detectron2 has the first four; here `lvis_v1_train` gets the base-class filter. All others keep
    images without annotations, which are needed to count false positives.
    """
    root = datasets_root()
    classes = get_lvis_instances_meta("lvis_v1")["thing_classes"]
    base = {i: c["id"] for i, c in enumerate(_categories()) if not _is_rare(c)}
    base_classes = [classes[i] for i in base]
    for split, file in ANNOTATION_FILES.items():
        for ending in ("", "_fullysup"):
            name, annotations, images = f"lvis_v1_{split}{ending}", f"{root}/lvis/{file}", f"{root}/coco"
            base_only = split == "train" and not ending
            for catalog in (DatasetCatalog, MetadataCatalog):
                if name in catalog.list():
                    catalog.remove(name)
            DatasetCatalog.register(
                name,
                lambda annotations=annotations, images=images, base_only=base_only: load_lvis(
                    annotations, images, base_only=base_only
                ),
            )
            MetadataCatalog.get(name).set(
                json_file=annotations,
                image_root=images,
                evaluator_type="lvis",
                thing_classes=base_classes if base_only else classes,
                fix_when_missing=FIX,
            )
            if base_only:
                numbers = {category: i for i, category in enumerate(base.values())}
                MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=numbers)


def load_lvis(annotation_file: str, image_root: str, *, base_only: bool = False) -> list[Record]:
    """Read an LVIS file into Detectron2's dataset records, by ascending image id.

    Args:
        annotation_file: LVIS JSON.
        image_root: folder with `train2017`, `val2017`, ...
        base_only: keep only annotations of frequent and common classes, numbered 0 ... 865 by
            ascending id, and drop images without any: the base set of open-vocabulary LVIS.

    Raises:
        UserError: missing file, not LVIS's format, duplicate ids, or categories not numbered from 1.
    """
    content = read_annotations(annotation_file, what="LVIS's JSON format", fix=FIX)
    if base_only:
        kept = [category for category in content.categories if not _is_rare(category)]
        classes = {str(id_key(category["id"])): i for i, category in enumerate(kept)}
    else:
        classes = {
            str(id_key(category["id"])): _class_number(category, content.path) for category in content.categories
        }
    records = lvis_records(content, classes, image_root, with_class_lists=not base_only)
    return [record for record in records if record["annotations"]] if base_only else records


def lvis_records(
    content: AnnotationFile, classes: Mapping[str, int], image_root: str | None, *, with_class_lists: bool = True
) -> list[Record]:
    """Return the records of a file.

    Args:
        content: from `read_annotations`.
        classes: class index by `id_key` of a category; annotations of others are dropped.
        image_root: folder with `train2017`, `val2017`, ...; None omits file names.
        with_class_lists: add `neg_category_ids` and `not_exhaustive_category_ids`, with the ids of the file.

    Raises:
        UserError: an image without a file name.
    """
    frequency = {id_key(category["id"]): frequency_of(category) for category in content.categories}
    records = []
    for image in content.images:
        record: Record = {} if image_root is None else {"file_name": _image_file(image, image_root, content.path)}
        record |= {"height": side(image.get("height")), "width": side(image.get("width")), "image_id": image["id"]}
        for key in CLASS_LISTS if with_class_lists else ():
            ids = image.get(key)
            record[key] = [i for i in ids if id_key(i) in frequency] if isinstance(ids, list) else []
        record["annotations"] = [
            {
                "bbox": annotation.get("bbox", ()),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes[own],
                "segmentation": annotation.get("segmentation", []),
                "frequency": frequency[own],
                **({"area": annotation["area"]} if "area" in annotation else {}),
            }
            for annotation in content.annotations[str(id_key(image["id"]))]
            if (own := str(id_key(annotation["category_id"]))) in classes
        ]
        records.append(record)
    return records


def drop_empty_images_as_upstream(records: Iterable[Record]) -> list[Record]:
    """Return the annotated records, those with most annotations first, each truncated to 500 annotations.

    Upstream also does this for validation, so false positives on images without objects are not counted.
    """
    annotated = sorted((r for r in records if r["annotations"]), key=lambda r: -len(r["annotations"]))
    return [{**record, "annotations": record["annotations"][:MAX_ANNOTATIONS_UPSTREAM]} for record in annotated]


def _image_file(image: Entry, image_root: str, source: str) -> str:
    address = image.get("coco_url")
    if isinstance(address, str) and address:
        # The URL contains the split folder: .../train2017/000000155379.jpg
        return str(Path(image_root, *address.split("/")[-2:]))
    return image_file(image, image_root, source)


def _class_number(category: Entry, source: str) -> int:
    key = str(id_key(category["id"]))
    if not re.fullmatch("[1-9][0-9]*", key):
        fix = "number them 1, 2, ... in the order of the class embeddings"
        raise user_error(f"{source}: category {category['name']}", "an id of 1 or more", repr(category["id"]), fix)
    return int(key) - 1


def frequency_of(category: Entry) -> str | None:
    """Return r, c or f, derived from the class's number of training images if only that is given."""
    frequency, images = category.get("frequency"), category.get("image_count")
    if isinstance(frequency, str) and frequency in FREQUENCIES:
        return frequency
    if isinstance(images, int) and images > 0:
        return next(name for name, most in FREQUENCIES.items() if images <= most)
    return None


def _categories() -> list[dict[str, Any]]:
    return sorted(LVIS_CATEGORIES, key=lambda category: category["id"])


def _is_rare(category: dict[str, Any]) -> bool:
    return frequency_of(category) == RARE
