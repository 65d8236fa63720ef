"""LVIS: the open-vocabulary (866 base, 337 novel), fully supervised and stock datasets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BoxMode

from regionclip.data.coco_json import annotations_by_image, read_annotation_file
from regionclip.data.coco_ovd import datasets_root

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

FIX = "download LVIS v1 (datasets/README.md)"
"""What to do when an annotation file is missing or not as expected."""

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
                fix_when_missing=FIX,
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
    content = read_annotation_file(annotation_file, what="LVIS's JSON format", fix=FIX)
    kept = [c["id"] for c in sorted(content["categories"], key=lambda c: c["id"]) if not (base_only and _is_rare(c))]
    contiguous = {category: i for i, category in enumerate(kept)} if base_only else {c: c - 1 for c in kept}
    frequency = {category["id"]: category.get("frequency") for category in content["categories"]}
    annotations = annotations_by_image(content, annotation_file)
    records = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = _record(image, image_root, base_only)
        record["annotations"] = [
            {
                "bbox": annotation.get("bbox", ()),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[annotation["category_id"]],
                "segmentation": annotation.get("segmentation", []),
                "frequency": frequency[annotation["category_id"]],
            }
            for annotation in annotations[image["id"]]
            if annotation["category_id"] in contiguous
        ]
        records.append(record)
    return [record for record in records if record["annotations"]] if base_only else records


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
    }
    if not base_only:  # these lists count in the numbering of all classes
        for key in ("not_exhaustive_category_ids", "neg_category_ids"):
            record[key] = image.get(key, [])
    return record


def _categories() -> list[dict[str, Any]]:
    return sorted(LVIS_CATEGORIES, key=lambda category: category["id"])


def _is_rare(category: dict[str, Any]) -> bool:
    return category.get("frequency") == RARE
