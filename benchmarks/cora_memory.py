#!/usr/bin/env python3
"""Peak memory of a training step of CORA's localizer, above that of the loaded model.

    python benchmarks/cora_memory.py [--images 4] [--height 800] [--width 1333] [--split] [--json]

`--split` splits the classes, which runs the decoder on each image twice. Weights, images and boxes are generated.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import Any, cast

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from benchmarks.timing import seconds_of
from regionclip.config.loading import load_config
from regionclip.methods.cora.detector import CORA
from regionclip.modeling.build import build_model
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic

GIB = 2**30


def make_batch(images: int, height: int, width: int, boxes: int = 8) -> list[dict[str, Any]]:
    """Return images of noise with boxes of random classes."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(images):
        corners = torch.rand(boxes, 2, generator=generator) * torch.tensor([width - 200, height - 200])
        sides = 40 + 150 * torch.rand(boxes, 2, generator=generator)
        target = Instances((height, width), gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)))
        target.gt_classes = torch.randint(48, (boxes,), generator=generator)
        pixels = torch.randint(255, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": pixels, "instances": target, "height": height, "width": width})
    return batch


def peak() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--split", action="store_true", help="split the classes")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.CORA.SPLIT_PROBABILITY", str(float(args.split))]
    overrides += ["MODEL.CORA.DROPOUT", str(args.dropout)]
    model = cast(CORA, build_model(load_config("configs/cora/coco_rn50.yaml", overrides)))
    fill_deterministic(model)
    model.train().train_classes = ConfiguredClasses(deterministic_text_embeddings("memory", 48, 1024))
    batch = make_batch(args.images, args.height, args.width)
    loaded = peak()

    def step() -> None:
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()

    seconds = seconds_of(step)
    used = peak() - loaded
    print(f"{args.images} images of {args.height} x {args.width}, classes {'split' if args.split else 'whole'}:")
    print(f"a step takes {used:.1f} GiB above the model's {loaded:.1f} GiB, and {seconds:.0f} s")
    if args.json:
        print(json.dumps({"step_gib": used, "model_gib": loaded, "seconds": seconds}))


if __name__ == "__main__":
    main()
