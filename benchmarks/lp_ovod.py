#!/usr/bin/env python3
"""Seconds per image of LP-OVOD with random weights, plain and optimized for inference, in turns.

python benchmarks/lp_ovod.py [--proposals 1000] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from timing import seconds_of

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.data.class_lists import CLASS_LISTS
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    options = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.CROP_REGION_TYPE", "", "MODEL.CLIP.OFFLINE_RPN_CONFIG", ""]
    cfg = load_config(
        "configs/lp_ovod/coco_probe.yaml", [*options, "MODEL.RPN.POST_NMS_TOPK_TEST", str(args.proposals)]
    )
    names = tuple(CLASS_LISTS["coco65"]())
    embeddings = deterministic_text_embeddings("names", len(names), 512)
    known = BackgroundClassifier(Vocabulary(names, embeddings, torch.arange(len(names))), None, "cpu")
    models = {}
    for name in ("plain", "optimized"):
        model = build_model(cfg).eval()
        fill_deterministic(model)
        models[name] = model.prepare_for_inference() if name == "optimized" else model
    pixels = torch.randint(0, 255, (3, 800, 1067), generator=torch.Generator().manual_seed(0)).byte()
    item = {"image": pixels, "height": 800, "width": 1067}
    times: dict[str, list[float]] = {name: [] for name in models}
    found: dict[str, list[int]] = {}

    def detect(name: str) -> None:
        (encoding,) = models[name].encode_images([item])
        found[name] = models[name].detect(encoding, known, Selection()).pred_classes.tolist()

    for _ in range(args.repeats):
        for name in models:
            times[name].append(seconds_of(lambda name=name: detect(name)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["plain"] / medians["optimized"]
    print(f"800 x 1067 pixels, {args.proposals} proposals: plain {medians['plain']:.1f} s, optimized")
    same = sum(a == b for a, b in zip(*found.values(), strict=False))
    print(f"{medians['optimized']:.1f} s, {ratio:.2f} times as fast; {same} of {len(found['plain'])} classes equal")
    if args.json:
        print(json.dumps({"proposals": args.proposals, "seconds": medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
