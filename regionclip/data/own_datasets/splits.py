"""Reproducible splits where a dataset has none, and the restriction of training to base classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from regionclip.data.datasets.annotation_file import id_key
from regionclip.data.datasets.lvis import CLASS_LISTS
from regionclip.data.own_datasets.dataset import ALL, TEST, TRAIN, VAL, OwnDataset
from regionclip.errors import user_error
from regionclip.records import Record

HELD_OUT = 0.2
"""Part of the images that evaluation gets where a dataset has no splits."""


def split_records(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Divide records into `TRAIN` and `VAL` by a hash of their file names.

    Every run divides them alike, and images that are added move none to the other part. Each part gets at least one.

    Raises:
        UserError: fewer than two images.
    """
    if len(records) < 2:
        raise user_error("--data", "at least two images, to hold one out", str(len(records)), "add images")
    places = [_place(record["file_name"]) for record in records]
    held_out = {i for i, place in enumerate(places) if place < HELD_OUT} or {places.index(min(places))}
    if len(held_out) == len(records):
        held_out.remove(places.index(max(places)))
    parts: dict[str, list[Record]] = {TRAIN: [], VAL: []}
    for i, record in enumerate(records):
        parts[VAL if i in held_out else TRAIN].append(record)
    return parts


def _place(file_name: str) -> float:
    """Return a number in [0, 1) that only the name of a file decides, whatever folder it is in."""
    digest = hashlib.sha256(os.fsencode(Path(file_name).name)).digest()
    return int.from_bytes(digest[:6]) / 2**48


def everything(dataset: OwnDataset) -> list[Record]:
    """Return the records of all splits; ids that several splits have get the name of their split."""
    records = [(name, record) for name, split in dataset.splits.items() for record in split]
    if len({id_key(record["image_id"]) for _, record in records}) == len(records):
        return [record for _, record in records]
    return [{**record, "image_id": f"{name}/{record['image_id']}"} for name, record in records]


def training_splits(dataset: OwnDataset) -> tuple[list[Record], list[Record]]:
    """Return the records to train and to evaluate on: named splits where there are some, else `split_records`.

    A test split serves where no validation split is named.
    """
    splits = dict(dataset.splits)
    held_out = splits.pop(VAL, None) or splits.pop(TEST, None)
    trained = splits.get(TRAIN) or splits.get(ALL) or []
    if held_out is None:
        parts = split_records(trained)
        return parts[TRAIN], parts[VAL]
    if not trained:
        expected, actual = "images to train on", f"only the splits {', '.join(dataset.splits)}"
        raise user_error(f"--data {dataset.source}", expected, actual, "name a train split")
    return trained, held_out


def test_split(dataset: OwnDataset, name: str) -> list[Record]:
    """Return the records of a split; `VAL` and `TRAIN` are those of `training_splits`.

    Raises:
        UserError: no such split.
    """
    if name == ALL:
        return everything(dataset)
    if name in dataset.splits:
        return list(dataset.splits[name])
    if name in (TRAIN, VAL):
        return training_splits(dataset)[name == VAL]
    known = ", ".join(dict.fromkeys((TRAIN, VAL, *dataset.splits, ALL)))
    raise user_error("--split", f"one of {known}", name, "name one of them")


def with_classes_of(dataset: OwnDataset, other: OwnDataset) -> list[Record]:
    """Return all records of `other` with the class indices of `dataset`.

    Raises:
        UserError: a class that `dataset` lacks.
    """
    unknown = [name for name in other.names if name not in dataset.names]
    if unknown:
        expected = f"the classes of --data: {', '.join(dataset.names[:10])}"
        raise user_error(f"--val-data {other.source}", expected, ", ".join(unknown[:5]), "rename them")
    if dataset.is_federated != other.is_federated:
        expected, actual = f"a {dataset.format} dataset, as --data", f"a {other.format} dataset"
        raise user_error(f"--val-data {other.source}", expected, actual, "give both in one format")
    index = [dataset.names.index(name) for name in other.names]
    ids = {id_key(own): dataset.ids[place] for own, place in zip(other.ids, index, strict=True)}
    return [_renamed(record, index, ids) for record in everything(other)]


def _renamed(record: Record, index: Sequence[int], ids: Mapping[str | None, Any]) -> Record:
    """Return a record with other class indices, and LVIS's lists of classes with other ids."""
    changed: Any = {
        **record,
        "annotations": [{**entry, "category_id": index[entry["category_id"]]} for entry in record["annotations"]],
    }
    for key in CLASS_LISTS:
        if key in record:
            changed[key] = [ids[id_key(own)] for own in record[key] if id_key(own) in ids]
    return changed


def novel_names(names: Sequence[str], wanted: Collection[str]) -> list[str]:
    """Return the novel class names in the order of `names`.

    Raises:
        UserError: a name that the dataset lacks, or no class left to train on.
    """
    unknown = [name for name in wanted if name not in names]
    if unknown:
        expected = f"class names of the dataset: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        raise user_error("--novel", expected, ", ".join(unknown), "correct the names")
    if set(wanted) == set(names):
        raise user_error("--novel", "at least one class left to train on", "all classes", "leave out some of them")
    return [name for name in names if name in wanted]


def without_classes(records: Sequence[Record], names: Sequence[str], novel: Collection[str]) -> list[Record]:
    """Return the records with only the annotations of base classes, numbered 0, 1, ... among these."""
    index = {i: base for base, i in enumerate(i for i, name in enumerate(names) if name not in novel)}
    return [
        {
            **record,
            "annotations": [
                {**annotation, "category_id": index[annotation["category_id"]]}
                for annotation in record["annotations"]
                if annotation["category_id"] in index
            ],
        }
        for record in records
    ]
