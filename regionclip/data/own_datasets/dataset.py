"""What every reader returns: class names, and Detectron2's records of each split."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionclip.errors import user_error
from regionclip.records import Record

TRAIN, VAL, TEST, ALL = "train", "val", "test", "all"
"""Names of splits; `ALL` is the only one of a dataset that names none."""

SPLIT_NAMES = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
"""Split by the name that folders, files and keys give it."""


@dataclass(frozen=True)
class OwnDataset:
    """A user's dataset, from a file or folder of any supported format."""

    source: Path
    format: str
    """Such as `COCO` or `YOLO`."""
    names: tuple[str, ...]
    """Class names by contiguous class index."""
    splits: Mapping[str, list[Record]]
    """Records by split name; boxes are absolute, with class indices into `names`."""
    category_ids: tuple[Any, ...] = ()
    """Ids of the classes in the file; empty where a format has none: they are numbered 1, 2, ... then."""
    frequencies: tuple[Any, ...] = ()
    """LVIS: `r`, `c` or `f` of each class. Such a dataset is evaluated by LVIS's federated rules."""

    @property
    def is_federated(self) -> bool:
        """Whether only some classes are annotated in each image, as in LVIS."""
        return bool(self.frequencies)

    @property
    def ids(self) -> tuple[Any, ...]:
        """Category ids by class index."""
        return self.category_ids or tuple(range(1, len(self.names) + 1))


def needed_splits(named: Collection[str], split: str) -> list[str]:
    """Return which of the `named` splits are needed for `split`; for `TRAIN`, that includes what is held out.

    A split that is not named is made of the others, which are all needed then.
    """
    if split == TRAIN:
        return [name for name in named if name != TEST or VAL not in named]
    return [split] if split in named else list(named)


def require_images(dataset: OwnDataset) -> OwnDataset:
    """Return a dataset with images, objects and classes.

    Raises:
        UserError: it has none of one of them.
    """
    counts = {
        "class names": len(dataset.names),
        "images": sum(map(len, dataset.splits.values())),
        "objects": sum(len(record["annotations"]) for records in dataset.splits.values() for record in records),
    }
    missing = [name for name, count in counts.items() if not count]
    if missing:
        expected = f"a {dataset.format} dataset with {missing[0]}"
        raise user_error(f"--data {dataset.source}", expected, "none", "name the file or folder with the annotations")
    return dataset
