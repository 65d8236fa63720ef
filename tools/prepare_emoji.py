#!/usr/bin/env python3
"""Build the synthetic emoji-scenes dataset: download drawings, write images, boxes, masks and captions."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from regionclip import Detections
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.data.emoji_scenes.datasets import FOLDER, SPLITS, prepare
from regionclip.data.emoji_scenes.pairs import PAIRS
from regionclip.data.images import read_image
from regionclip.engine.command import DONE, log_to_console, run_command
from regionclip.files import atomic_write, make_folder

logger = logging.getLogger("regionclip.emoji")

SHEET_SCENES, SHEET_COLUMNS = 8, 4
"""Number of scenes per split on the check sheet, and number of columns."""


def main() -> int:
    """Run the command, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=f"{datasets_root()}/{FOLDER}", help="folder of the synthetic dataset")
    parser.add_argument("--packages", help="folder with the packages of drawings, as npm pack writes them")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--scenes", type=int, help="of each split, instead of 20,000 and 1,000")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="image-text pairs for CLIP, made with train")
    parser.add_argument("--shards", action="store_true", help="write the scenes as WebDataset shards too")
    parser.add_argument("--sheet", help="image to write: scenes with their boxes and names, to look at")
    args = parser.parse_args()
    root, packages = Path(args.root), Path(args.packages) if args.packages else None
    make_folder(root, f"output {root}")
    written = prepare(root, packages, args.splits, args.scenes, args.pairs, shards=args.shards)
    if args.sheet:
        with atomic_write(args.sheet) as file:
            check_sheet(root, args.splits).save(file, format="PNG")
        logger.info("Scenes to look at: %s", args.sheet)
    logger.info("Done: %d splits; annotations in %s", len(args.splits), written[0].parent)
    return DONE


def check_sheet(root: Path, splits: Sequence[str]) -> Image.Image:
    """Return an image with the first scenes of each split in a grid, with drawn annotations."""
    scenes = [drawn for split in splits for drawn in drawn_scenes(root, split)]
    side, rows = max(max(scene.size) for scene in scenes), -(-len(scenes) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * side, rows * side), "white")
    for i, scene in enumerate(scenes):
        sheet.paste(scene, (i % SHEET_COLUMNS * side, i // SHEET_COLUMNS * side))
    return sheet


def drawn_scenes(root: Path, split: str) -> Iterator[Image.Image]:
    """Yield the first scenes of a split with drawn boxes and class names."""
    names = tuple(concept.name for concept in read_concepts())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / f"{split}.json"))
    for number in truth.getImgIds()[:SHEET_SCENES]:
        own_annotations = truth.loadAnns(truth.getAnnIds(imgIds=number))
        boxes = np.array([annotation["bbox"] for annotation in own_annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pixels = read_image(root / split / truth.imgs[number]["file_name"])
        none = np.zeros((len(boxes), 0))
        yield Detections(
            boxes=boxes,
            scores=np.ones(len(boxes), np.float32),
            class_ids=np.array([annotation["category_id"] - 1 for annotation in own_annotations], np.int64),
            vocabulary=names,
            image_size=pixels.shape[:2],
            top_class_ids=none.astype(np.int64),
            top_scores=none.astype(np.float32),
            image=pixels,
        ).draw()


if __name__ == "__main__":
    log_to_console()
    run_command(main)
