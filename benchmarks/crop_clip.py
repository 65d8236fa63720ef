#!/usr/bin/env python3
"""Regions a second of CLIP on crops, with random weights: one region at a time, and in chunks.

python benchmarks/crop_clip.py [--clip ViT-B/32] [--regions 128] [--json]
"""

from __future__ import annotations

import argparse
import json

import torch
from timing import seconds_of

from regionclip.clip import crops
from regionclip.clip.architectures import get_architecture
from regionclip.clip.image_encoders.clip_vit import build_image_encoder


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="ViT-B/32")
    parser.add_argument("--regions", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    encoder = build_image_encoder(get_architecture(args.clip)).eval()
    embed = crops.CropEncoder(encoder, lambda pixels: pixels / 255.0).embed
    image = torch.randint(0, 255, (3, 480, 640), dtype=torch.uint8)
    corners = torch.rand(args.regions, 2) * torch.tensor([500.0, 380.0])
    boxes = torch.cat([corners, corners + 20 + torch.rand(args.regions, 2) * 80], dim=1)
    rates = {}
    with torch.no_grad():
        embed(image, boxes[:2])
        for name, chunk in (("one at a time", 1), ("chunks", crops.CROPS_AT_ONCE)):
            crops.CROPS_AT_ONCE = chunk
            rates[name] = args.regions / seconds_of(lambda: embed(image, boxes))
    plain, ours = rates.values()
    print(f"{args.clip}, two crops a region: {plain:.1f} regions a second one at a time, {ours:.1f} in chunks:")
    print(f"{ours / plain:.2f} times as fast; 1000 images with 1000 regions each take {1e6 / ours / 3600:.1f} hours")
    if args.json:
        print(json.dumps({"clip": args.clip, "regions_per_second": rates, "ratio": ours / plain}))


if __name__ == "__main__":
    main()
