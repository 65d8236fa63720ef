"""Open-vocabulary COCO: the six `coco_2017_ovd_*` datasets, and the base classes with CLIP-aligned labels."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.data.datasets.annotation_file import read_json
from regionclip.data.datasets.coco_json import load_coco
from regionclip.data.datasets.coco_split import ALL_CATEGORIES, BASE_CATEGORIES, NOVEL_CATEGORIES
from regionclip.errors import user_error
from regionclip.files import write_json

Categories = dict[int, str]

SPLITS: dict[str, Categories] = {"all": ALL_CATEGORIES, "b": BASE_CATEGORIES, "t": NOVEL_CATEGORIES}
"""Categories by the letter in file and dataset names: all, base, target (novel)."""

YEARS = {"train": "train2017", "test": "val2017"}
"""Image folder by the suffix of the dataset name."""

RELABELED = {
    "coco_2017_ovd_b_train_relabel_rn50": "instances_train2017_base_RN50relabel.json",
    "coco_2017_ovd_b_train_relabel_rn50x4": "instances_train2017_base_RN50x4relabel_pre.json",
}
"""Published files of the base classes with the labels that a region classifier gives, by dataset name."""

RETRIEVED = "coco_2017_ovd_retrieved_train"
"""Dataset of the regions that novel class names retrieve among training images, for linear probing (LP-OVOD)."""

RETRIEVED_FIX = "write it with `regionclip lp-ovod retrieve` (docs/methods/lp_ovod.md)"

FIX = "run tools/prepare_coco_ovd.py (datasets/README.md)"
RELABELED_FIX = "write it with `regionclip cora relabel`, or download it (docs/methods/cora.md)"
"""Fixes for a missing or unexpected annotation file."""


def datasets_root() -> str:
    """Return the root folder of all datasets: $DETECTRON2_DATASETS, else `datasets`."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))  # noqa: PTH111 - Detectron2 wants a string


def register() -> None:
    """Register `coco_2017_ovd_{all,b,t}_{train,test}`, `RELABELED` and `RETRIEVED` with their classes."""
    for split, categories in SPLITS.items():
        for ending, year in YEARS.items():
            _register(f"coco_2017_ovd_{split}_{ending}", f"ovd_ins_{year}_{split}.json", year, categories, FIX)
    for name, file in RELABELED.items():
        _register(name, file, YEARS["train"], BASE_CATEGORIES, RELABELED_FIX)
    _register(RETRIEVED, "retrieved_proposals.json", YEARS["train"], ALL_CATEGORIES, RETRIEVED_FIX)


def _register(name: str, file: str, year: str, categories: Categories, fix: str) -> None:
    root = datasets_root()
    images, annotations = f"{root}/coco/{year}", f"{root}/coco/annotations/{file}"
    names = list(categories.values())
    DatasetCatalog.register(name, partial(load_coco, annotations, images, names, fix=fix))
    MetadataCatalog.get(name).set(
        json_file=annotations,
        image_root=images,
        evaluator_type="coco",
        thing_classes=names,
        thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(categories)},
        class_groups=class_groups(categories),
        fix_when_missing=fix,
    )


def class_groups(categories: Categories) -> dict[str, list[str]]:
    """Return the base and novel class names among `categories`, without empty groups."""
    groups = {"novel": NOVEL_CATEGORIES, "base": BASE_CATEGORIES}
    members = {group: [name for i, name in categories.items() if i in known] for group, known in groups.items()}
    return {group: names for group, names in members.items() if names}


def prepare_coco_ovd(coco_root: str | Path) -> list[Path]:
    """Write the six `ovd_ins_*` files next to the stock COCO annotation files.

    Each keeps the categories of its split (with a field `split`: `seen` or `unseen`), their
    annotations, and the images that have at least one.

    Args:
        coco_root: folder with `annotations/instances_{train,val}2017.json`.

    Returns:
        The written files.

    Raises:
        UserError: an annotation file is missing or not in COCO's format.
    """
    folder = Path(coco_root) / "annotations"
    contents = {year: _read_annotations(folder / f"instances_{year}.json") for year in YEARS.values()}
    written = []
    for year, content in contents.items():
        for split, categories in SPLITS.items():
            path = folder / f"ovd_ins_{year}_{split}.json"
            write_json(path, _restrict(content, categories))
            written.append(path)
    return written


def _restrict(content: dict[str, Any], categories: Categories) -> dict[str, Any]:
    annotations = [a for a in content["annotations"] if a["category_id"] in categories]
    annotated = {a["image_id"] for a in annotations}
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in annotated],
        "annotations": annotations,
        "categories": [
            {**category, "split": "seen" if category["id"] in BASE_CATEGORIES else "unseen"}
            for category in content["categories"]
            if category["id"] in categories
        ],
    }


def _read_annotations(path: Path) -> dict[str, Any]:
    fix = "put the stock COCO 2017 annotations there (datasets/README.md)"
    content = read_json(path, what="the stock COCO annotation file", fix=fix)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        _ = [(a["image_id"], a["category_id"]) for a in content["annotations"]], content["images"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        actual = f"{type(error).__name__}: {error}"
        raise user_error(str(path), "COCO's JSON format", actual, "download the file again") from error
    missing = [name for category, name in ALL_CATEGORIES.items() if names.get(category) != name]
    if missing:
        actual = f"no category {', '.join(missing[:3])} under its COCO id"
        raise user_error(str(path), "the 80 categories of COCO", actual, "use the stock annotation files")
    return content
