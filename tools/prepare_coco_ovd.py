#!/usr/bin/env python3
"""Write the six open-vocabulary COCO annotation files from the stock ones."""

from __future__ import annotations

import argparse

from regionclip.data.datasets.coco_ovd import datasets_root, prepare_coco_ovd
from regionclip.engine.command import DONE, run_command


def main() -> int:
    """Write the files, print their paths, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = f"{datasets_root()}/coco"
    parser.add_argument("--coco-root", default=default, help=f"folder with annotations/ (default: {default})")
    for path in prepare_coco_ovd(parser.parse_args().coco_root):
        print(path)
    return DONE


if __name__ == "__main__":
    run_command(main)
