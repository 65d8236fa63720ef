#!/usr/bin/env python3
"""Seconds of CORA's localizer for one image: ours, and the same computation without fused parts, in turns.

    python benchmarks/cora.py [--queries 1000] [--words 1203] [--side 800] [--repeats 3] [--json]

The plain path has contiguous maps, separate normalization layers, torchvision's RoIAlign and NMS, all tokens as queries
of the attention pool, and encodes every region. Weights are generated: the detections mean nothing, and are compared.
New class names on the encoded image are timed too.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from typing import Any, cast

import torch
from detectron2.layers import batched_nms
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baseline import attend_with_all_tokens
from benchmarks.e2e import read_inputs
from benchmarks.timing import seconds_of
from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.memory import keep_freed_memory
from regionclip.methods.cora.detector import CORA
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.ops.implementation import use_implementation
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic


def make_model(queries: int, side: int) -> CORA:
    """Return a localizer on CLIP RN50 with generated weights."""
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.CORA.NUM_QUERIES", str(queries), "INPUT.MIN_SIZE_TEST", str(side)]
    model = build_model(load_config("configs/cora/coco_rn50.yaml", overrides))
    fill_deterministic(model)
    with torch.no_grad():
        # Anchors of all places and sizes; the generated ones lie in the middle.
        model.query_embed.weight.copy_(torch.randn(queries, 4, generator=torch.Generator().manual_seed(0)) * 1.5)
    return cast(CORA, model.eval())


@torch.no_grad()
def plain_detect(model: CORA, inputs: list[dict[str, Any]], classifier: BackgroundClassifier) -> Tensor:
    """Return the boxes of the detections, computed without our fused parts."""
    with use_implementation("torchvision"):
        (encoding,) = model.encode_images(cast(Any, inputs))
        found = model.localize(encoding, classifier)
        boxes = model._on_cells(encoding, found.proposal_boxes)
        encoder = model.roi_heads.encoder
        maps = encoder.region_maps([encoding.image.layer3], [boxes])
        embeddings = attend_with_all_tokens(cast(AttentionPool2d, model.backbone.attnpool), maps)
        cosines = classifier(F.normalize(embeddings, dim=1))
        probabilities = (100 * F.pad(cosines, (0, 1))).softmax(dim=1)[:, :-1]
        scores = probabilities * found.objectness_logits.sigmoid()[:, None]
        region, category = (scores > model.score_threshold).nonzero(as_tuple=True)
        clipped = found.proposal_boxes.clone()
        clipped.clip(found.image_size)
        kept = batched_nms(clipped.tensor[region], scores[region, category], category, 0.5)[:100]
        return clipped.tensor[region[kept]]


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--words", type=int, default=1203)
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    plain = make_model(args.queries, args.side)
    ours = cast(CORA, copy.deepcopy(plain).prepare_for_inference())
    keep_freed_memory()
    inputs = read_inputs("RN50", 1, None)
    rows = deterministic_text_embeddings("benchmark", args.words, 1024)
    names = tuple(f"word {i}" for i in range(args.words))
    classifier = BackgroundClassifier(Vocabulary(names, rows, torch.arange(args.words), model="RN50"), None, "cpu")

    def detect() -> Tensor:
        (encoding,) = ours.encode_images(cast(Any, inputs))
        return ours.detect(encoding, classifier, Selection()).pred_boxes.tensor

    (encoded,) = ours.encode_images(cast(Any, inputs))
    expected, found = plain_detect(plain, inputs, classifier), detect()
    jobs = {
        "plain": lambda: plain_detect(plain, inputs, classifier),
        "ours": detect,
        "names": lambda: ours.detect(encoded, classifier, Selection()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.repeats):
        for name, job in jobs.items():
            seconds[name].append(seconds_of(job))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True))
    same = len(expected) == len(found) and bool((expected - found).abs().max() < 0.5)
    print(
        f"plain {medians['plain']:.2f} s, ours {medians['ours']:.2f} s: {ratio:.2f} times as fast; same boxes: {same}"
    )
    print(f"new class names on the encoded image: {medians['names']:.2f} s")
    if args.json:
        print(json.dumps({"seconds": medians, "ratio": ratio, "detections": len(found), "same_boxes": same}))


if __name__ == "__main__":
    main()
