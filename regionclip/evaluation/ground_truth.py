"""Ground truth for evaluation: cleaned annotations with renumbered ids, the same for every library."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_tools

from regionclip.data.datasets.annotation_file import by_id, id_key, read_annotations, report_left_out
from regionclip.data.datasets.cleaning import clean_test_records
from regionclip.data.datasets.coco_json import coco_records
from regionclip.data.datasets.lvis import CLASS_LISTS, lvis_records
from regionclip.data.datasets.masks import as_run_lengths, valid_mask
from regionclip.errors import user_error
from regionclip.evaluation.predictions import Results
from regionclip.records import Annotation, Record, Result

ReadRecords = Callable[[], Sequence[Record]]
"""Returns all images of a test set as Detectron2's records, cleaned by `clean_test_records`."""

Annotations = str | Path | ReadRecords
"""Ground truth for an evaluator: a file, or a function that returns its records."""

_FIX = "download or write the annotations again (datasets/README.md)"


@dataclass(frozen=True)
class GroundTruth:
    """Annotations for one task, and the mapping from the ids in results to their numbers."""

    content: dict[str, Any]
    """In COCO's format: images, categories and annotations are numbered 1, 2, ... in the order of their ids."""
    images: Mapping[Any, int]
    """Number by image id, as given and as `id_key`."""
    categories: Mapping[Any, int]
    """Number by category id, as given and as `id_key`."""

    def numbered(self, results: Results) -> Results:
        """Return results with the ids of this ground truth."""
        return _NumberedResults(results, self)


class _NumberedResults(Collection[Result]):
    """Results in COCO's format with the ids of a ground truth; generated on each iteration."""

    def __init__(self, results: Results, truth: GroundTruth) -> None:
        self.all, self.truth = results, truth

    def __len__(self) -> int:
        return len(self.all)

    def __contains__(self, result: object) -> bool:
        return any(result == own for own in self)

    def __iter__(self) -> Iterator[Result]:
        for result in self.all:
            image = _number(self.truth.images, result["image_id"])
            category = _number(self.truth.categories, result["category_id"])
            yield {**result, "image_id": image, "category_id": category}


def _number(numbers: Mapping[Any, int], value: Any) -> int:
    number = numbers.get(value) or numbers.get(id_key(value))
    if number is None:
        raise user_error("detections", "images and categories of the annotations", repr(value), "evaluate again")
    return number


def _numbers(ids: Sequence[Any]) -> dict[Any, int]:
    return {name: i for i, value in enumerate(ids, start=1) for name in (value, id_key(value))}


def coco_reader(annotations: Annotations, category_ids: Sequence[Any]) -> ReadRecords:
    """Return a function that reads COCO records; `category_ids` are those of the file by class index."""
    return annotations if callable(annotations) else partial(read_coco_truth, annotations, category_ids)


def lvis_reader(annotations: Annotations, category_ids: Sequence[Any]) -> ReadRecords:
    """Return a function that reads LVIS records; `category_ids` are those of the file by class index."""
    return annotations if callable(annotations) else partial(read_lvis_truth, annotations, category_ids)


def read_coco_truth(path: str | Path, category_ids: Sequence[Any], image_root: str | None = None) -> list[Record]:
    """Return the cleaned records of a COCO file; without `image_root` no image file is opened.

    Raises:
        UserError: the file cannot be read.
    """
    content = read_annotations(path, what="COCO's JSON format", fix=_FIX)
    return _clean(coco_records(content, _classes(category_ids), image_root), path)


def read_lvis_truth(path: str | Path, category_ids: Sequence[Any], image_root: str | None = None) -> list[Record]:
    """Return the cleaned records of an LVIS file; without `image_root` no image file is opened.

    Raises:
        UserError: the file cannot be read.
    """
    content = read_annotations(path, what="LVIS's JSON format", fix=_FIX)
    return _clean(lvis_records(content, _classes(category_ids), image_root), path)


def _classes(category_ids: Sequence[Any]) -> dict[str, int]:
    return {str(id_key(category)): i for i, category in enumerate(category_ids)}


def _clean(records: Sequence[Record], path: str | Path) -> list[Record]:
    cleaned, counts = clean_test_records(records)
    report_left_out(str(path), counts)
    return cleaned


def coco_truth(records: Sequence[Record], category_ids: Sequence[Any], *, masks: bool = False) -> GroundTruth:
    """Return COCO's ground truth.

    Args:
        records: cleaned by `clean_test_records`.
        category_ids: of the dataset by class index.
        masks: drop objects without a valid mask, as training with masks does.
    """
    return _truth(records, category_ids, masks=masks, is_lvis=False)


def lvis_truth(records: Sequence[Record], category_ids: Sequence[Any], *, masks: bool = False) -> GroundTruth:
    """Return LVIS's ground truth, including classes verified as absent or not annotated exhaustively.

    LVIS has no crowds. A class gets the frequency of its objects; without objects it is in no metric anyway.

    Args:
        records: cleaned by `clean_test_records`.
        category_ids: of the dataset by class index.
        masks: drop objects without a valid mask, as training with masks does.
    """
    return _truth(records, category_ids, masks=masks, is_lvis=True)


def _truth(records: Sequence[Record], category_ids: Sequence[Any], *, masks: bool, is_lvis: bool) -> GroundTruth:
    ordered = by_id(clean_test_records(records, masks=True)[0] if masks else records, "image_id")
    categories: list[dict[str, Any]] = [
        {"id": i, "name": str(value), "frequency": None} for i, value in enumerate(category_ids, start=1)
    ]
    content: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": categories}
    classes = _numbers(category_ids)
    for number, record in enumerate(ordered, start=1):
        image = {"id": number, "height": record["height"], "width": record["width"]}
        for key in CLASS_LISTS if is_lvis else ():
            image[key] = [classes[i] for i in map(id_key, record.get(key) or ()) if i in classes]
        content["images"].append(image)
        for annotation in record.get("annotations") or ():
            entry = {"id": len(content["annotations"]) + 1, "image_id": number, **_object(annotation, record, masks)}
            if is_lvis:
                entry["iscrowd"] = 0
                categories[annotation["category_id"]]["frequency"] = annotation.get("frequency")
            content["annotations"].append(entry)
    return GroundTruth(content, _numbers([record["image_id"] for record in ordered]), classes)


def _object(annotation: Annotation, record: Record, masks: bool) -> dict[str, Any]:
    """Return an object in COCO's format, without ids."""
    entry: dict[str, Any] = {
        "category_id": annotation["category_id"] + 1,
        "bbox": _corner_and_size(annotation),
        "iscrowd": annotation["iscrowd"],
        "area": _area(annotation, record),
    }
    return entry | {"segmentation": annotation["segmentation"]} if masks else entry


def _corner_and_size(annotation: Annotation) -> list[float]:
    box = annotation["bbox"]
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        return box
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _area(annotation: Annotation, record: Record) -> float:
    """Return the area of an object in square pixels: from its annotation, else its mask, else its box."""
    area = annotation.get("area")
    if isinstance(area, int | float) and 0 < area < math.inf:
        return area
    size = record["height"], record["width"]
    mask = valid_mask(annotation.get("segmentation"), size)
    if mask:
        return float(mask_tools.area(as_run_lengths(mask, *size)))
    _, _, width, height = _corner_and_size(annotation)
    return width * height
