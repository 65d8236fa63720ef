"""LVIS: the open-vocabulary (866 base, 337 novel), fully supervised and stock datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BoxMode

from regionclip.data.coco_ovd import datasets_root
from regionclip.errors import user_error

Record = dict[str, Any]

ANNOTATION_FILES = {
    "train": "lvis_v1_train.json",
    "val": "lvis_v1_val.json",
    "test_dev": "lvis_v1_image_info_test_dev.json",
    "test_challenge": "lvis_v1_image_info_test_challenge.json",
}
"""Annotation file by split."""

MAX_ANNOTATIONS_UPSTREAM = 500
"""Upstream cuts the annotations of an image to so many."""

RARE = "r"


def register() -> None:
    """Register `lvis_v1_{train,val,test_dev,test_challenge}`, also with the ending `_fullysup`.

    Detectron2 has the first four; they get the class filter for training. All others keep the
    images without annotation, which are needed to count false positives.
    """
    root = datasets_root()
    classes = get_lvis_instances_meta("lvis_v1")["thing_classes"]
    base_classes = [name for name, category in zip(classes, _categories(), strict=True) if not _is_rare(category)]
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
                fix_when_missing="download LVIS v1 (datasets/README.md)",
            )


def load_lvis(annotation_file: str, image_root: str, *, base_only: bool = False) -> list[Record]:
    """Read an LVIS file into Detectron2's dataset records, by ascending image id.

    Args:
        annotation_file: LVIS JSON.
        image_root: folder that holds `train2017`, `val2017`, ...
        base_only: keep only annotations of frequent and common classes, number these 0 ... 865 by
            ascending id, and leave out images without any: the base set of open-vocabulary LVIS.

    Raises:
        UserError: missing file, or not in LVIS's format.
    """
    content = _read(annotation_file)
    kept = [c["id"] for c in sorted(content["categories"], key=lambda c: c["id"]) if not (base_only and _is_rare(c))]
    contiguous = {category: i for i, category in enumerate(kept)} if base_only else {c: c - 1 for c in kept}
    frequency = {category["id"]: category.get("frequency") for category in content["categories"]}
    records = {image["id"]: _record(image, image_root, base_only) for image in content["images"]}
    for annotation in content.get("annotations", ()):
        category = annotation["category_id"]
        if category in contiguous:
            records[annotation["image_id"]]["annotations"].append(
                {
                    "bbox": annotation["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": contiguous[category],
                    "segmentation": annotation["segmentation"],
                    "frequency": frequency[category],
                }
            )
    by_id = [records[image] for image in sorted(records)]
    return [record for record in by_id if record["annotations"]] if base_only else by_id


def drop_empty_images_as_upstream(records: Iterable[Record]) -> list[Record]:
    """Return the records with annotations, those with most first, each cut to 500 annotations.

    Upstream does this for validation too, so false positives on images without objects go unseen.
    """
    annotated = sorted((r for r in records if r["annotations"]), key=lambda r: -len(r["annotations"]))
    return [{**record, "annotations": record["annotations"][:MAX_ANNOTATIONS_UPSTREAM]} for record in annotated]


def _record(image: dict[str, Any], image_root: str, base_only: bool) -> Record:
    # The address names the split folder: .../train2017/000000155379.jpg
    place = image["coco_url"].split("/")[-2:] if "coco_url" in image else [image["file_name"]]
    record: Record = {
        "file_name": str(Path(image_root, *place)),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": [],
    }
    if not base_only:  # these lists count in the numbering of all classes
        for key in ("not_exhaustive_category_ids", "neg_category_ids"):
            record[key] = image.get(key, [])
    return record


def _read(annotation_file: str) -> dict[str, Any]:
    path = Path(annotation_file)
    if not path.is_file():
        raise user_error(annotation_file, "an LVIS file", "no such file", "download LVIS v1 (datasets/README.md)")
    try:
        content = json.loads(path.read_text())
        _ = content["images"][0]["id"], content["categories"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        actual = f"{type(error).__name__}: {error}"
        raise user_error(annotation_file, "LVIS's JSON format", actual, "download the file again") from error
    return content


def _categories() -> list[dict[str, Any]]:
    return sorted(LVIS_CATEGORIES, key=lambda category: category["id"])


def _is_rare(category: dict[str, Any]) -> bool:
    return category.get("frequency") == RARE
