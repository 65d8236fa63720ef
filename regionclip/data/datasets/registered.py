"""Records of registered datasets, including those registered by users."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.lvis import get_lvis_instances_meta

import regionclip.data.datasets.builtin  # noqa: F401 - registers the names
from regionclip.data.datasets.annotation_file import OWN_IDS, AnnotationFile, id_key, read_annotations, report_left_out
from regionclip.data.datasets.cleaning import clean_test_records
from regionclip.data.datasets.coco_json import coco_records, require_names
from regionclip.data.datasets.lvis import load_lvis
from regionclip.errors import UserError, user_error
from regionclip.records import Record

FIX = "download or write the annotations again (datasets/README.md)"

STOCK_COCO, STOCK_LVIS = "detectron2.data.datasets.coco", "detectron2.data.datasets.lvis"
"""Modules of the functions registered by Detectron2's `register_coco_instances` and `register_lvis_instances`."""


def read_records(dataset_name: str) -> list[Record]:
    """Return Detectron2's records of all images of a registered dataset, with unique image ids.

    Files registered with Detectron2's functions are read by this package, with its annotation checks.

    Raises:
        UserError: the dataset cannot be read.
    """
    try:
        stock = {STOCK_COCO: _stock_coco, STOCK_LVIS: _stock_lvis}.get(DatasetCatalog[dataset_name].__module__)
        records = stock(dataset_name) if stock else _records_of_function(dataset_name)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OSError, AssertionError) as error:
        actual = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise user_error(f"{dataset_name} {annotations_of(dataset_name)}", "a readable dataset", actual, FIX) from error
    _check_records(records, dataset_name)
    return records


def read_clean_records(dataset_name: str) -> list[Record]:
    """Return the records of all images with annotations that are valid for testing; see `clean_test_records`.

    Dropped annotations are logged once.

    Raises:
        UserError: the dataset cannot be read.
    """
    records = read_records(dataset_name)
    classes = MetadataCatalog.get(dataset_name).get("thing_classes")
    cleaned, counts = clean_test_records(records, None if classes is None else len(classes))
    report_left_out(annotations_of(dataset_name), counts)
    return cleaned


def annotations_of(dataset_name: str) -> str:
    """Return the annotation file of a registered dataset, or the dataset name if it has none."""
    return str(MetadataCatalog.get(dataset_name).get("json_file", dataset_name))


def _records_of_function(dataset_name: str) -> list[Record]:
    return list(get_detection_dataset_dicts(dataset_name, filter_empty=False, check_consistency=False))


def _stock_coco(dataset_name: str) -> list[Record]:
    metadata = MetadataCatalog.get(dataset_name)
    content = read_annotations(metadata.json_file, what="COCO's JSON format", fix=FIX)
    _learn_classes(dataset_name, content)
    return coco_records(content, content.numbers(), str(metadata.image_root))


def _learn_classes(dataset_name: str, content: AnnotationFile) -> None:
    """Set class names and ids in the metadata, as Detectron2 does on loading."""
    metadata = MetadataCatalog.get(dataset_name)
    names = [category["name"] for category in content.categories]
    numbers = {category["id"]: i for i, category in enumerate(content.categories)}
    require_names(content, list(metadata.get("thing_classes", names)), FIX)
    known = metadata.get("thing_dataset_id_to_contiguous_id", numbers)
    if known != numbers:
        expected, actual = f"categories with the ids {list(known)[:5]}, ...", f"{list(numbers)[:5]}, ..."
        raise user_error(content.path, expected, actual, "register another file under another name")
    metadata.set(thing_dataset_id_to_contiguous_id=numbers)
    if "thing_classes" not in metadata.as_dict():
        metadata.thing_classes = names


def _stock_lvis(dataset_name: str) -> list[Record]:
    metadata = MetadataCatalog.get(dataset_name)
    metadata.set(**get_lvis_instances_meta(dataset_name))
    if hasattr(metadata, "thing_dataset_id_to_contiguous_id"):  # COCO classes on LVIS images
        return _records_of_function(dataset_name)
    return load_lvis(metadata.json_file, str(metadata.image_root))


def _check_records(records: Iterable[Record], dataset_name: str) -> None:
    """Raise `UserError` for a record without a file, a list of annotations, or a unique id."""
    files: dict[str, Any] = {}
    for number, record in enumerate(records):
        file, annotations = record.get("file_name"), record.get("annotations")
        if not isinstance(file, str | PathLike):
            fix = "write the path of its file"
            raise user_error(f"{dataset_name}: record {number}", "a file_name", repr(file), fix)
        if not isinstance(annotations, list | tuple | None):
            fix = "write a list of dicts"
            raise user_error(f"{dataset_name}: annotations of {file}", "a list", type(annotations).__name__, fix)
        key = id_key(record.get("image_id"))
        if key is None:
            raise user_error(f"{dataset_name}: {file}", "an image_id", repr(record.get("image_id")), OWN_IDS)
        if key in files:
            actual = f"{record['image_id']} for {files[key]} and for {file}"
            raise user_error(f"{dataset_name}: image_id", "an id for each image", actual, OWN_IDS)
        files[key] = file
