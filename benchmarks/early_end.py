#!/usr/bin/env python3
"""Measure how many regions early termination skips, the time saved, and whether detections stay bit-identical.

    python benchmarks/early_end.py [--model emoji|RN50|RN50x4] [--images 6] [--folder FOLDER] [--detections 100]

Each image is processed twice in turns, with early termination of the RoI head and without. `emoji` is the default
detector on datasets/demo_scenes or the images of a folder; the others have generated weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.structures import Instances
from e2e import make_model, read_inputs
from timing import seconds_of
from torch import Tensor
from tqdm import tqdm

from regionclip.memory import keep_freed_memory
from regionclip.modeling.inference.early_end import LazyRegions
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.postprocess import DetectionSelector


def never(selector: DetectionSelector, objectness_logits: Tensor) -> Tensor:
    """Return a bound that skips no region."""
    return torch.full_like(objectness_logits, torch.inf)


@contextmanager
def watched_regions() -> Iterator[list[LazyRegions]]:
    """Yield a list that collects the regions of each image."""
    made: list[LazyRegions] = []
    make = LazyRegions.__init__

    def watched(self: LazyRegions, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(self)

    with mock.patch.object(LazyRegions, "__init__", watched):
        yield made


def same(one: Instances, other: Instances) -> bool:
    """Return whether detections are bit-identical."""
    boxes = torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    return boxes and torch.equal(one.scores, other.scores) and torch.equal(one.pred_classes, other.pred_classes)


@torch.no_grad()
def compare(arguments: argparse.Namespace) -> dict[str, float]:
    """Return regions, seconds and the number of images with different detections."""
    model = make_model(arguments.model, "rpn", arguments.proposals)
    predictor = model.roi_heads.box_predictor
    predictor.selector = replace(predictor.selector, max_detections=arguments.detections)
    keep_freed_memory()
    prepare_for_inference(model)
    inputs = read_inputs(arguments.model, arguments.images, arguments.folder)
    model.inference(inputs[:1], do_postprocess=False)
    seconds, results = ([], []), ([], [])
    everything = mock.patch.object(DetectionSelector, "largest_score", never)
    found: list[Instances] = []
    with watched_regions() as regions:
        for image in tqdm(inputs, desc="images", unit="image"):
            for way in (0, 1):
                with everything if way else nullcontext():
                    run = lambda image=image: found.extend(model.inference([image], do_postprocess=False))  # noqa: E731
                    seconds[way].append(seconds_of(run))
                results[way].append(found.pop())
    return {
        "images": len(inputs),
        "regions": sum(map(len, regions)) // 2,
        "encoded": sum(r.encoded for r in regions[::2]),
        "images_with_other_detections": sum(not same(*pair) for pair in zip(*results, strict=True)),
        "seconds": sum(seconds[0]),
        "seconds_of_all_regions": sum(seconds[1]),
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", choices=["emoji", "RN50", "RN50x4"])
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="of an image at most")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="folder with images")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    metrics = compare(arguments)
    share, ratio = metrics["encoded"] / metrics["regions"], metrics["seconds_of_all_regions"] / metrics["seconds"]
    print(f"{arguments.model}, {arguments.proposals} proposals, {arguments.detections} detections an image")
    print(f"{share:.1%} of {metrics['regions']} regions encoded, {ratio:.2f} times as fast")
    print(f"{metrics['images_with_other_detections']} of {metrics['images']} images with other detections")
    if arguments.json:
        print(json.dumps({**metrics, "speedup": ratio}))


if __name__ == "__main__":
    main()
