"""The splits of the synthetic dataset as registered datasets, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.data.datasets.coco_json import load_coco
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.data.emoji_scenes.concepts import BASE, NOVEL, read_concepts
from regionclip.data.emoji_scenes.drawings import Drawings
from regionclip.data.emoji_scenes.packages import prepare_drawings
from regionclip.data.emoji_scenes.pairs import PAIRS, write_pairs
from regionclip.data.emoji_scenes.scenes import SceneMaker, SceneSettings
from regionclip.data.emoji_scenes.variations import Variations
from regionclip.data.emoji_scenes.writing import write_split

FOLDER = "emoji"
"""Of the synthetic dataset, under the folder of all datasets."""

FIX = "run tools/prepare_emoji.py (datasets/emoji/README.md)"


@dataclass(frozen=True)
class Split:
    """A set of scenes."""

    styles: tuple[str, ...]
    seed: int
    scenes: int
    settings: SceneSettings = field(default_factory=SceneSettings)


SPLITS = {
    "train": Split(("noto", "twemoji", "noto_v1", "emojione"), 1, 20_000, SceneSettings(variations=Variations())),
    "val": Split(("noto", "twemoji"), 2, 1_000),
    "style": Split(("fluent",), 3, 1_000),
}
"""Training scenes of four styles, test scenes of two of them, and test scenes of a fifth that no training sees."""


def register() -> None:
    """Register `emoji_{train,val,style}` with all concepts, and `emoji_{train,val,style}_base` with base ones.

    `emoji_train_relabel` has base boxes with the classes that a region classifier sees in them (`regionclip cora`),
    `emoji_train_retrieved` the regions that names of novel concepts retrieve (`regionclip lp-ovod`).
    """
    for split in SPLITS:
        derived = (("_relabel", (BASE,)), ("_retrieved", (BASE, NOVEL))) if split == "train" else ()
        for ending, wanted in (("", (BASE, NOVEL)), ("_base", (BASE,)), *derived):
            kept = [concept for concept in read_concepts() if concept.split in wanted]
            names = [concept.name for concept in kept]
            annotations = f"{datasets_root()}/{FOLDER}/annotations/{split}{ending}.json"
            images = f"{datasets_root()}/{FOLDER}/{split}"
            groups = {group: [c.name for c in kept if c.split == group] for group in (NOVEL, BASE)}
            DatasetCatalog.register(f"emoji_{split}{ending}", partial(load_coco, annotations, images, names, fix=FIX))
            MetadataCatalog.get(f"emoji_{split}{ending}").set(
                json_file=annotations,
                image_root=images,
                evaluator_type="coco",
                thing_classes=names,
                thing_dataset_id_to_contiguous_id={c.number + 1: i for i, c in enumerate(kept)},
                class_groups={group: members for group, members in groups.items() if members},
                fix_when_missing=FIX,
            )


def prepare(
    root: Path,
    packages: Path | None = None,
    splits: Sequence[str] = tuple(SPLITS),
    scenes: int | None = None,
    pairs: int = PAIRS,
    *,
    shards: bool = False,
) -> list[Path]:
    """Make splits under `root`, with `train` the captioned images for CLIP too, and return the JSON files.

    Args:
        root: folder of the synthetic dataset.
        packages: folder with the packages of drawings; without, npm fetches them.
        splits: names in `SPLITS`.
        scenes: how many of each, for those in SPLITS.
        pairs: captioned images.
        shards: write the scenes as WebDataset shards too.

    Raises:
        UserError: the drawings cannot be had.
    """
    styles = dict.fromkeys(style for split in splits for style in SPLITS[split].styles)
    prepare_drawings(root / "drawings", packages, tuple(styles))
    written = []
    for name in splits:
        split = SPLITS[name]
        drawings = [Drawings(root / "drawings", style) for style in split.styles]
        maker = SceneMaker(drawings, read_concepts(), split.seed, split.settings)
        if name == "train":
            write_pairs(root, drawings, pairs)
        written += write_split(root, name, maker, scenes or split.scenes, shards=shards)
    return written
