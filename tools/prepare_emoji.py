#!/usr/bin/env python3
"""Make the small world of emoji scenes: fetch the drawings, write pictures, boxes, masks and captions."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from regionclip.data.coco_ovd import datasets_root
from regionclip.data.emoji_scenes.datasets import FOLDER, SPLITS, prepare
from regionclip.data.emoji_scenes.pairs import PAIRS
from regionclip.engine.command import DONE, log_to_console, open_folder, run_command

logger = logging.getLogger("regionclip.emoji")


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=f"{datasets_root()}/{FOLDER}", help="folder of the small world")
    parser.add_argument("--packages", help="folder with the packages of drawings, as npm pack writes them")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--scenes", type=int, help="of each split, in the place of 20,000 and 1,000")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="captioned pictures for CLIP, made with train")
    args = parser.parse_args()
    root = Path(args.root)
    open_folder(root)
    written = prepare(root, Path(args.packages) if args.packages else None, args.splits, args.scenes, args.pairs)
    logger.info("Done: %d splits; annotations in %s", len(args.splits), written[0].parent)
    return DONE


if __name__ == "__main__":
    log_to_console()
    run_command(main)
