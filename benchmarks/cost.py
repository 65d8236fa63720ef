#!/usr/bin/env python3
"""Time a detector for growing numbers of proposals, classes, pixels and images: no term should exceed linear.

    python benchmarks/cost.py [--model RN50|RN50x4] [--precision float32] [--repeat 2] [--json]

From 300 proposals, 1203 classes, 800 pixels and one image, one of them changes at a time. `plain` is
benchmarks/baseline.py in the same round, for proposals only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from baseline import PlainDetector
from e2e import make_model, read_inputs
from tabulate import tabulate
from timing import median_seconds
from torch.nn import functional as F

from regionclip.data.datasets.custom_images import list_images
from regionclip.data.images import read_image
from regionclip.data.test_loader import TestMapper
from regionclip.files import REPOSITORY
from regionclip.memory import keep_freed_memory
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.inference.prepare import prepare_for_inference

PROPOSALS, WORDS, SIDES, IMAGES = (100, 300, 1000, 2000), (80, 1203, 5000, 20000), (400, 600, 800, 1200), (1, 2, 4)


def set_proposals(model: CLIPFastRCNN, count: int) -> None:
    """Set the number of proposals of the RPN."""
    generator: Any = model.offline_proposal_generator
    generator.post_nms_topk[False] = count


def set_words(model: CLIPFastRCNN, count: int) -> None:
    """Use `count` random class embeddings."""
    classifier = model.roi_heads.box_predictor.cls_score
    rows = F.normalize(torch.randn(count, classifier.in_features), dim=1)
    classifier.weight = torch.nn.Parameter(rows, requires_grad=False)


def blank_image(side: int) -> list[dict[str, Any]]:
    """Return one image with a shorter side of `side` pixels."""
    first = list_images(REPOSITORY / "datasets" / "demo_images")[0]
    return [TestMapper(side, 2 * side, "RGB", keep_annotations=False).map_pixels(read_image(first))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", choices=["RN50", "RN50x4"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    unprepared, model = (make_model(arguments.model, "rpn", 300) for _ in range(2))
    plain = PlainDetector(unprepared)
    keep_freed_memory()
    prepare_for_inference(model, arguments.precision)
    rows: list[list[Any]] = []

    def note(what: str, amount: int, inputs: Sequence[dict[str, Any]], *, compare: bool = False) -> None:
        own = median_seconds(lambda: model.inference(inputs, do_postprocess=False), arguments.repeat)
        theirs = median_seconds(lambda: plain(inputs), 1) if compare else None
        rows.append([what, amount, own, own / amount * 1e3, theirs])

    with torch.no_grad():
        for count in PROPOSALS:
            for detector in (unprepared, model):
                set_proposals(detector, count)
            note("proposals", count, blank_image(800), compare=True)
        set_proposals(model, 300)
        for count in WORDS:
            set_words(model, count)
            note("words", count, blank_image(800))
        set_words(model, 1203)
        for side in SIDES:
            note("pixels of the shorter side", side, blank_image(side))
        for count in IMAGES:
            note("images at once", count, read_inputs(arguments.model, count))
    print(f"{arguments.model}, {arguments.precision}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=["", "", "s", "ms for each", "plain, s"], floatfmt=("", "", ".2f", ".2f", ".2f")))
    if arguments.json:
        print(json.dumps([dict(zip(("what", "amount", "seconds"), row, strict=False)) for row in rows]))


if __name__ == "__main__":
    main()
