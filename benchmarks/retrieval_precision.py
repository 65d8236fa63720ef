#!/usr/bin/env python3
"""How many of the regions that a class name retrieves show an object of the class.

python benchmarks/retrieval_precision.py --retrieved retrieved.json --truth annotations.json [--output precision.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_convert, box_iou

IOU = 0.5
"""A region shows an object that it overlaps by at least this."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieved", type=Path, required=True, help="file of regionclip lp-ovod retrieve")
    parser.add_argument("--truth", type=Path, required=True, help="COCO file with all objects of the images")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    retrieved = json.loads(args.retrieved.read_text())
    precision = precision_of_classes(retrieved, json.loads(args.truth.read_text()))
    names = {category["id"]: category["name"] for category in retrieved["categories"]}
    ordered = sorted(precision.values())
    result: dict[str, Any] = {
        "classes": len(ordered),
        "mean": statistics.mean(ordered),
        "median": statistics.median(ordered),
        "lowest_tenth": ordered[len(ordered) // 10],
        "by_class": {names[category]: value for category, value in sorted(precision.items())},
    }
    print(f"{len(ordered)} classes: {100 * result['mean']:.1f} % of their regions show the class, on average;")
    print(f"median {100 * result['median']:.1f} %, a tenth of the classes at most {100 * result['lowest_tenth']:.1f} %")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1))
        print(f"Done: {args.output}")


def precision_of_classes(retrieved: dict[str, Any], truth: dict[str, Any]) -> dict[Any, float]:
    """Return by category id the share of its regions that overlap an object of the category."""
    objects: dict[tuple[Any, Any], list[list[float]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["image_id"], annotation["category_id"]].append(annotation["bbox"])
    hits: dict[Any, list[bool]] = defaultdict(list)
    for entry in retrieved["annotations"]:
        own = objects.get((entry["image_id"], entry["category_id"]), [])
        boxes = box_convert(torch.tensor([entry["bbox"], *own]), "xywh", "xyxy")
        hits[entry["category_id"]].append(bool((box_iou(boxes[:1], boxes[1:]) >= IOU).any()))
    return {category: sum(found) / len(found) for category, found in hits.items()}


if __name__ == "__main__":
    main()
