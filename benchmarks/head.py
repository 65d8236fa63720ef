#!/usr/bin/env python3
"""Time the steps of the RoI head against the baseline (benchmarks/baseline.py), in one run.

    python benchmarks/head.py [--model RN50|RN50x4] [--regions 1000] [--words 1203] [--repeat 3] [--json]

The feature map is that of an image of 800 x 1067 pixels; weights and map are generated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from baseline import PlainDetector, attend_with_all_tokens
from detectron2.structures import Boxes, Instances
from e2e import make_model
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from regionclip.memory import keep_freed_memory
from regionclip.modeling.inference.precision import is_native
from regionclip.modeling.inference.prepare import prepare_for_inference

SIDES = (800, 1067)


def random_proposals(count: int) -> Instances:
    """Return boxes inside the image with sides from 16 pixels to half of it, best first."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([SIDES[1], SIDES[0]])
    corner = torch.rand(count, 2, generator=generator) * size / 2
    sides = 16 + torch.rand(count, 2, generator=generator) * (size / 2 - 16)
    logits = torch.rand(count, generator=generator).sort(descending=True).values
    boxes = Boxes(torch.cat([corner, corner + sides], dim=1))
    return Instances(SIDES, proposal_boxes=boxes, objectness_logits=logits)


def plain_parts(plain: PlainDetector, features: Tensor, proposals: Instances) -> dict[str, Callable[[], Any]]:
    """Return the steps as the baseline computes them, and the whole."""
    pooled = plain.pooler([features], [proposals.proposal_boxes])
    maps = plain.image_encoder.layer4(pooled)
    embeddings = attend_with_all_tokens(plain.attention_pool, maps)
    return {
        "RoIAlign": lambda: plain.pooler([features], [proposals.proposal_boxes]),
        "layer4": lambda: plain.image_encoder.layer4(pooled),
        "attention pool": lambda: attend_with_all_tokens(plain.attention_pool, maps),
        "scores and suppression": lambda: plain.detect(embeddings, [proposals]),
        "head": lambda: plain.detect(
            attend_with_all_tokens(
                plain.attention_pool, plain.image_encoder.layer4(plain.pooler([features], [proposals.proposal_boxes]))
            ),
            [proposals],
        ),
    }


def own_parts(heads: Any, features: Tensor, proposals: Instances) -> dict[str, Callable[[], Any]]:
    """Return the steps of an optimized head; RoIAlign and layer4 are one step, computed in chunks."""
    features = features.contiguous(memory_format=torch.channels_last).to(next(heads.encoder.last_stage.parameters()))
    embeddings = heads.encode({"res4": features}, [proposals.proposal_boxes])
    maps = heads.encoder.region_maps([features], [proposals.proposal_boxes])

    def select(vectors: Tensor) -> Any:
        return heads.box_predictor.inference(heads.box_predictor(vectors), [proposals])

    return {
        "attention pool": lambda: [heads.encoder.embed(part) for part in maps.split(64)],
        "scores and suppression": lambda: select(embeddings),
        "head": lambda: select(heads.encode({"res4": features}, [proposals.proposal_boxes])),
    }


def native_precisions() -> list[str]:
    """Return the native precisions of the processor."""
    return [precision for precision in ("float32", "bfloat16") if is_native(precision, "cpu")]


def paths_of(arguments: argparse.Namespace) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return the steps of each path, on the same regions."""
    proposals, paths = random_proposals(arguments.regions), {}
    for path in ("plain", *native_precisions()):
        model = make_model(arguments.model, "rpn", arguments.regions)
        classifier = model.roi_heads.box_predictor.cls_score
        rows = F.normalize(torch.randn(arguments.words, classifier.in_features), dim=1)
        classifier.weight = torch.nn.Parameter(rows, requires_grad=False)
        channels = model.backbone.output_shape()["res4"].channels
        features = torch.rand(1, channels, SIDES[0] // 16, SIDES[1] // 16)
        if path == "plain":
            paths[path] = plain_parts(PlainDetector(model), features, proposals)
        else:
            keep_freed_memory()
            paths[path] = own_parts(prepare_for_inference(model, path).roi_heads, features, proposals)
    return paths


@torch.no_grad()
def median_seconds(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median time of each step of each path; the paths alternate."""
    paths = paths_of(arguments)
    seconds: dict[str, dict[str, list[float]]] = {path: {part: [] for part in parts} for path, parts in paths.items()}
    for _ in range(arguments.repeat):
        for path, parts in paths.items():
            for part, compute in parts.items():
                start = time.perf_counter()
                compute()
                seconds[path][part].append(time.perf_counter() - start)
    return {path: {part: statistics.median(times) for part, times in of.items()} for path, of in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", choices=["RN50", "RN50x4"])
    parser.add_argument("--regions", type=int, default=1000)
    parser.add_argument("--words", type=int, default=1203)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    medians = median_seconds(arguments)
    rows = [
        [part, *(f"{of[part] * 1e3:.0f}" if part in of else "" for of in medians.values())] for part in medians["plain"]
    ]
    print(f"{arguments.model}, {arguments.regions} regions, {arguments.words} words, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=["ms", *medians]))
    ratios = {f"speedup_{path}": medians["plain"]["head"] / medians[path]["head"] for path in native_precisions()}
    print(", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items()))
    if arguments.json:
        print(json.dumps({**ratios, "seconds": medians}))


if __name__ == "__main__":
    main()
