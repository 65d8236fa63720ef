#!/usr/bin/env python3
"""Measure the effect of half precision: classes and scores of the same regions, against float32.

    python benchmarks/precision.py [--model emoji|RN50|RN50x4] [--images 6] [--folder FOLDER] [--json]

Both detectors get the proposals of the first one. `emoji` is the default detector on datasets/demo_scenes or the
images of a folder, with meaningful detections; the others have generated weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from e2e import make_model, read_inputs
from torch import Tensor

from regionclip.memory import keep_freed_memory
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.inference.prepare import ROUNDED_FROM, prepare_for_inference

MARGIN = 0.02
"""Minimum difference of the two highest probabilities for a class to count as decided."""

CLOSE = 0.01
"""Score difference that counts as unchanged."""


def scores_of(model: CLIPFastRCNN, inputs: list[dict[str, object]], proposals: list[Any]) -> tuple[Tensor, Tensor]:
    """Return [R, K] class probabilities, without background, and scores of boxes, of all regions."""
    predictor = model.roi_heads.box_predictor
    probabilities, scores = [], []
    for image, found in zip(inputs, proposals, strict=True):
        (embeddings,) = model.encode_regions([image], [found])
        of_regions = predictor(embeddings)[0].softmax(dim=1)
        objectness = found.objectness_logits[:, None].expand_as(of_regions)
        probabilities.append(of_regions[:, :-1])
        scores.append(predictor.selector.fusion(of_regions, objectness)[:, :-1])
    return torch.cat(probabilities), torch.cat(scores)


@torch.no_grad()
def compare(arguments: argparse.Namespace) -> dict[str, float]:
    """Return how many regions keep their class, and how much scores change."""
    exact, rounded = (
        make_model(arguments.model, "rpn", arguments.proposals).to(arguments.device).eval() for _ in range(2)
    )
    prepare_for_inference(exact)
    keep_freed_memory()
    prepare_for_inference(rounded, arguments.precision, arguments.first_stage, "keep")
    inputs = read_inputs(arguments.model, arguments.images, arguments.folder)
    proposals = [exact.proposal_source.propose([image], exact.device)[0] for image in inputs]
    (expected, boxes), (found, found_boxes) = (scores_of(model, inputs, proposals) for model in (exact, rounded))
    best = expected.topk(2, dim=1)
    decided = best.values[:, 0] - best.values[:, 1] > MARGIN
    same = found.argmax(dim=1) == best.indices[:, 0]
    moved = (found - expected).abs()
    reported = boxes > exact.roi_heads.box_predictor.selector.score_threshold
    scores_moved = (found_boxes - boxes).abs()[reported]
    return {
        "regions": len(expected),
        "decided": int(decided.sum()),
        "same_class_of_decided": float(same[decided].float().mean()),
        "same_class": float(same.float().mean()),
        f"regions_within_{CLOSE}": float((moved.amax(dim=1) <= CLOSE).float().mean()),
        "largest_change_of_a_probability": float(moved.max()),
        "99th_percentile_of_the_best_probability's_change": float(
            moved.gather(1, best.indices[:, :1]).flatten().quantile(0.99)
        ),
        "reported_scores": len(scores_moved),
        f"reported_scores_within_{CLOSE}": float((scores_moved <= CLOSE).double().mean()),
        "largest_change_of_a_reported_score": float(scores_moved.max()),
        "largest_reported_score": float(boxes[reported].max()),
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", choices=["emoji", "RN50", "RN50x4"])
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--first-stage", default="res5", choices=ROUNDED_FROM, help="of the backbone in that precision")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="a folder of images instead of the model's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    metrics = compare(arguments)
    print(f"{arguments.model}, {arguments.precision} from {arguments.first_stage} on against float32")
    for name, value in metrics.items():
        print(f"  {name.replace('_', ' ')}: {value:.6g}")
    if arguments.json:
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
