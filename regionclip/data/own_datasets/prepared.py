"""A user's dataset as a folder of COCO files, which the config key DATASETS.FOLDER registers in every process."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.data.datasets.annotation_file import read_annotations, read_json
from regionclip.data.datasets.coco_json import coco_records
from regionclip.data.datasets.lvis import CLASS_LISTS, lvis_records
from regionclip.data.own_datasets.dataset import TRAIN, OwnDataset
from regionclip.data.own_datasets.splits import (
    everything,
    novel_names,
    test_split,
    training_splits,
    with_classes_of,
    without_classes,
)
from regionclip.errors import user_error
from regionclip.files import atomic_write
from regionclip.records import Record

DATASET_FILE = "dataset.json"

OWN_TRAIN, OWN_TEST = "own_train", "own_test"
"""Names of the registered datasets."""

_KEPT = ("height", "width", *CLASS_LISTS)

_FIX = "give the command with --data again"


@dataclass(frozen=True)
class Prepared:
    """The two datasets of a training or evaluation."""

    dataset: OwnDataset
    test: Sequence[Record]
    train: Sequence[Record] = ()
    novel: Sequence[str] = ()
    """Class names that training must not see."""

    @property
    def base_names(self) -> list[str]:
        """Class names of the training."""
        return [name for name in self.dataset.names if name not in self.novel]

    def summary(self) -> Iterator[str]:
        """Yield what the datasets have, a line each."""
        groups = class_groups(self.dataset.names, self.novel)
        counts = f" ({len(groups['base'])} base, {len(groups['novel'])} novel)" if groups else ""
        yield f"{self.dataset.format} dataset {self.dataset.source}: {len(self.dataset.names)} classes{counts}"
        both = {_resolved(record) for record in self.train} & {_resolved(record) for record in self.test}
        if both:
            yield f"  warning: {len(both)} images are in both; the metrics say how well these are remembered"
        for name, records in (("train", self.train), ("evaluate", self.test)):
            if records:
                objects = sum(len(record["annotations"]) for record in records)
                yield f"  to {name} on: {len(records)} images, {objects} objects"

    def write(self, folder: Path, *, is_resumed: bool = False) -> None:
        """Write `own_train.json`, `own_test.json` and `dataset.json`.

        Raises:
            UserError: a training that is resumed had other data.
        """
        contents = {f"{name}.json": json.dumps(content) for name, content in self._contents().items()}
        for name, text in contents.items():
            file = folder / name
            if is_resumed and file.is_file() and file.read_text() != text:
                expected, actual = "the data that the training began with", f"another {name} from --data"
                raise user_error("--resume", expected, actual, "leave out --resume, or name another --output")
        for name, text in contents.items():
            with atomic_write(folder / name) as written:
                written.write(text.encode())

    def _contents(self) -> dict[str, Any]:
        dataset, base_ids = (
            self.dataset,
            [i for i, name in zip(self.dataset.ids, self.dataset.names, strict=True) if name not in self.novel],
        )
        contents = {OWN_TEST: _as_coco(self.test, dataset, dataset.ids)}
        if self.train:
            records = without_classes(self.train, dataset.names, self.novel)
            contents[OWN_TRAIN] = _as_coco(records, dataset, base_ids)
        about = {"source": str(dataset.source.resolve()), "format": dataset.format, "novel": list(self.novel)}
        return {**contents, Path(DATASET_FILE).stem: {**about, "federated": dataset.is_federated}}


def _resolved(record: Record) -> str:
    return os.path.realpath(record["file_name"])


def prepare_training(dataset: OwnDataset, novel: Collection[str], held_out: OwnDataset | None = None) -> Prepared:
    """Return the data of a training: the splits of a dataset, or all of it where another is held out.

    Args:
        dataset: to train on.
        novel: class names that training must not see.
        held_out: dataset to evaluate on.

    Raises:
        UserError: an unknown class name, or too few images.
    """
    names = novel_names(dataset.names, novel)
    if held_out is not None:
        trained = dataset.splits.get(TRAIN) or everything(dataset)
        return Prepared(dataset, with_classes_of(dataset, held_out), trained, names)
    trained, tested = training_splits(dataset)
    return Prepared(dataset, tested, trained, names)


def prepare_evaluation(dataset: OwnDataset, novel: Collection[str], split: str) -> Prepared:
    """Return the data of an evaluation on a split; raises `UserError` for an unknown split or class name."""
    return Prepared(dataset, test_split(dataset, split), novel=novel_names(dataset.names, novel))


def _as_coco(records: Sequence[Record], dataset: OwnDataset, category_ids: Sequence[Any]) -> dict[str, Any]:
    """Return records in COCO's or LVIS's format, with absolute file names; `category_ids` by their class index."""
    all_names = dict(zip(dataset.ids, dataset.names, strict=True))
    frequencies = dict(zip(dataset.ids, dataset.frequencies, strict=False))
    categories = [
        {"id": i, "name": all_names[i], **({"frequency": frequencies[i]} if dataset.is_federated else {})}
        for i in category_ids
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        entry = {"id": record["image_id"], "file_name": str(Path(record["file_name"]).resolve())}
        known = {key: value for key, value in record.items() if key in _KEPT and value is not None}
        images.append(entry | known)
        for annotation in record["annotations"]:
            kept = {
                key: value for key, value in annotation.items() if key not in ("bbox_mode", "frequency", "keypoints")
            }
            kept |= {"id": len(annotations) + 1, "image_id": record["image_id"]}
            annotations.append({**kept, "category_id": category_ids[annotation["category_id"]]})
    return {"images": images, "annotations": annotations, "categories": categories}


def register_folder(folder: str | Path) -> None:
    """Register `OWN_TRAIN` and `OWN_TEST` of a folder; those of another folder are forgotten. Empty does nothing.

    Raises:
        UserError: no such folder.
    """
    for name in (OWN_TRAIN, OWN_TEST) if folder else ():
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(name, None)
        file = Path(folder, f"{name}.json")
        if file.is_file():
            _register(name, file, read_json(Path(folder, DATASET_FILE), what="a folder that --data wrote", fix=_FIX))
        elif name == OWN_TEST:
            raise user_error(f"DATASETS.FOLDER {folder}", "a folder that --data wrote", f"no {file.name} in it", _FIX)


def _register(name: str, file: Path, about: Mapping[str, Any]) -> None:
    categories = read_json(file, what="COCO's JSON format", fix=_FIX)["categories"]
    names = [category["name"] for category in categories]
    DatasetCatalog.register(name, _Reader(str(file), is_federated=about["federated"]))
    MetadataCatalog.get(name).set(
        json_file=str(file),
        image_root="",
        evaluator_type="lvis" if about["federated"] else "coco",
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={category["id"]: i for i, category in enumerate(categories)},
        class_groups=class_groups(names, about["novel"]),
        fix_when_missing=_FIX,
    )


def class_groups(names: Sequence[str], novel: Collection[str]) -> dict[str, list[str]]:
    """Return the novel and base class names among `names`; empty if none is novel."""
    groups = {"novel": [name for name in names if name in novel], "base": [name for name in names if name not in novel]}
    return groups if groups["novel"] and groups["base"] else {}


@dataclass(frozen=True)
class _Reader:
    """Reads the records of a file; other processes get it by pickling."""

    file: str
    is_federated: bool

    def __call__(self) -> list[Record]:
        content = read_annotations(self.file, what="COCO's JSON format", fix=_FIX)
        read = lvis_records if self.is_federated else coco_records
        return read(content, content.numbers(), "")
