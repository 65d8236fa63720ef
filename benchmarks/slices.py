#!/usr/bin/env python3
"""AP and seconds on images of many small objects, with tiles and without.

Each image is a mosaic of 3 x 3 scenes, which the detector resizes to about the size of one scene.

python benchmarks/slices.py [--model emoji] --images val/ --annotations val.json [--mosaics 12] [--slices 448:0.2]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from regionclip import RegionCLIP, Slices
from regionclip.clip.prompts import same_to_clip
from regionclip.evaluation.coco import evaluate_with_faster_coco_eval, mean_ap50

SIDE, CELL = 3, 448
"""Scenes in a row, and the pixels that each is placed in."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--images", type=Path, required=True, help="folder")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO file")
    parser.add_argument("--mosaics", type=int, default=12)
    parser.add_argument("--slices", default="448:0.2")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    content = json.loads(args.annotations.read_text())
    photos, truth = make_mosaics(content, args.images, args.mosaics)
    detector = RegionCLIP.from_pretrained(args.model)
    detector.set_vocabulary([category["name"] for category in content["categories"]], background=None)
    results = {}
    for name, slices in (("whole image", None), (f"tiles {args.slices}", Slices.parse(args.slices))):
        results[name] = evaluate(detector, photos, truth, slices)
        print(f"{name}: AP50 {results[name]['AP50']:.1f}, {results[name]['seconds']:.2f} s an image")
    if args.json:
        print(json.dumps({"mosaics": args.mosaics, "scenes": SIDE * SIDE, "results": results}))


def make_mosaics(content: dict[str, Any], folder: Path, count: int) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return mosaics of the first scenes, and their annotations."""
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    mosaics, images, annotations = [], [], []
    for number in range(count):
        mosaic = Image.new("RGB", (SIDE * CELL, SIDE * CELL), "white")
        for place, image in enumerate(content["images"][number * SIDE * SIDE : (number + 1) * SIDE * SIDE]):
            left, top = place % SIDE * CELL, place // SIDE * CELL
            mosaic.paste(Image.open(folder / image["file_name"]).convert("RGB"), (left, top))
            for annotation in of_image[image["id"]]:
                x, y, width, height = annotation["bbox"]
                moved = {"bbox": [x + left, y + top, width, height], "area": width * height, "iscrowd": 0}
                about = {"id": len(annotations) + 1, "image_id": number, "category_id": annotation["category_id"]}
                annotations.append({**about, **moved})
        mosaics.append(mosaic)
        images.append({"id": number, "width": mosaic.width, "height": mosaic.height})
    return mosaics, {"images": images, "annotations": annotations, "categories": content["categories"]}


def evaluate(
    detector: RegionCLIP, photos: list[Image.Image], truth: dict[str, Any], slices: Slices | None
) -> dict[str, float]:
    """Return AP50, and the seconds of an image."""
    ids = {same_to_clip(category["name"]): category["id"] for category in truth["categories"]}
    results, seconds = [], 0.0
    for number, photo in enumerate(photos):
        start = time.perf_counter()
        detector.set_image(photo)
        found = detector.predict(threshold=0.0, topk=100, per_class=True, slices=slices)
        seconds += time.perf_counter() - start
        detector.forget_images()
        for (x1, y1, x2, y2), score, name in found:
            box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
            category = ids[same_to_clip(name)]
            results.append({"image_id": number, "category_id": category, "bbox": box, "score": float(score)})
    _, precisions = evaluate_with_faster_coco_eval(truth, results, "bbox")
    ap50 = mean_ap50(precisions, range(len(truth["categories"])))
    return {"AP50": ap50, "seconds": seconds / len(photos)}


if __name__ == "__main__":
    main()
