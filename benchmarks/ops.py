#!/usr/bin/env python3
"""Time the operators against torchvision's, torch's and a plain Python loop, in one run.

    python benchmarks/ops.py [--device cuda] [--repeats 5] [--threads 1 2]

Each line has the medians of both and their ratio; below 1 this package is slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision
from timing import median_seconds
from torch import Tensor
from tqdm import tqdm

from regionclip.modeling.inference.precision import is_native
from regionclip.ops import WinogradConv2d, batched_nms, nms, roi_align, soft_nms, use_implementation


class Pair(NamedTuple):
    """A job with both implementations."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    opponent: str = "torchvision"


def random_boxes(count: int, width: float, height: float, largest: float, device: str) -> Tensor:
    """Return boxes [count, 4] inside an image, with sides from 8 pixels to a fraction of its own."""
    size = torch.tensor([width, height])
    corner = torch.rand(count, 2) * size * 0.8
    sides = torch.rand(count, 2) * size * largest + 8
    return torch.cat([corner, torch.minimum(corner + sides, size)], dim=1).to(device)


def pooling_pairs(device: str, count: int = 1000) -> Iterator[Pair]:
    """Yield RoIAlign jobs: the head of RN50 on an 800 x 1067 image, its steps, and an FPN level."""
    rois = torch.cat([torch.zeros(count, 1, device=device), random_boxes(count, 1067, 800, 0.5, device)], dim=1)
    features = torch.randn(1, 1024, 50, 67, device=device)
    channels_last = features.contiguous(memory_format=torch.channels_last)
    small = torch.cat([rois[:, :1], random_boxes(count, 1067, 800, 0.05, device)], dim=1)
    level = torch.randn(1, 256, 200, 272, device=device)

    def pair(name: str, maps: Tensor, regions: Tensor, side: int, scale: float, ratio: int, theirs: Tensor) -> Pair:
        arguments = (side, scale, ratio, True)
        return Pair(
            name,
            lambda: roi_align(maps, regions, *arguments),
            lambda: torchvision.ops.roi_align(theirs, regions, *arguments),
        )

    yield pair(f"RoIAlign {count} regions, 1024 x 50 x 67, 14 x 14", features, rois, 14, 1 / 16, 0, features)
    yield pair("  channels last", channels_last, rois, 14, 1 / 16, 0, features)
    yield pair("  25 regions", features, rois[:25], 14, 1 / 16, 0, features)
    yield pair("  small regions", features, small, 14, 1 / 16, 0, features)
    yield pair("  sampling ratio 2", features, rois, 14, 1 / 16, 2, features)
    half = features.bfloat16()
    yield pair("  bfloat16 (torchvision float32)", half, rois, 14, 1 / 16, 0, features)
    yield pair(f"RoIAlign {count} small regions, 256 x 200 x 272, 7 x 7", level, small, 7, 1 / 4, 0, level)
    yield pair("  one region", level, small[:1], 7, 1 / 4, 0, level)
    yield from gradient_pairs(features, rois[: count // 2])


def gradient_pairs(features: Tensor, rois: Tensor) -> Iterator[Pair]:
    """Yield the training job: forward and backward of RoIAlign."""

    def train(pool: Callable[..., Tensor]) -> Callable[[], None]:
        leaf = features.clone().requires_grad_()

        def step() -> None:
            pool(leaf, rois, 14, 1 / 16, 0, True).sum().backward()

        return step

    yield Pair(f"RoIAlign {len(rois)} regions, with gradient", train(roi_align), train(torchvision.ops.roi_align))


def convolution_pairs() -> Iterator[Pair]:
    """Yield 3x3 convolutions without gradients: of 64 regions in layer4, of an FPN's finest map, of a backbone."""
    for count, channels, height, width in ((64, 512, 14, 14), (64, 512, 7, 7), (1, 256, 200, 280), (1, 128, 100, 134)):
        for dtype in (torch.float32, torch.bfloat16) if is_native("bfloat16", "cpu") else (torch.float32,):
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
            ours = WinogradConv2d(layer.weight, layer.bias, dtype)
            layer.to(dtype, memory_format=torch.channels_last)
            maps = torch.randn(count, channels, height, width, dtype=dtype).to(memory_format=torch.channels_last)
            name = f"3x3 of {count} x {channels} x {height} x {width}, {str(dtype).removeprefix('torch.')}"
            yield Pair(name, partial(without_gradients, ours, maps), partial(without_gradients, layer, maps), "torch")


@torch.no_grad()
def without_gradients(layer: torch.nn.Module, maps: Tensor) -> Tensor:
    """Return the output of a layer without gradients."""
    return layer(maps)


def suppression_pairs(device: str, count: int = 1000) -> Iterator[Pair]:
    """Yield suppression jobs: one class, all LVIS classes, and soft-NMS against the loop."""
    boxes, scores = random_boxes(10 * count, 1000, 1000, 0.2, device), torch.rand(10 * count, device=device)
    for threshold in (0.3, 0.7):
        yield Pair(
            f"NMS {len(boxes)} boxes, IoU {threshold}",
            lambda threshold=threshold: nms(boxes, scores, threshold),
            lambda threshold=threshold: torchvision.ops.nms(boxes, scores, threshold),
        )
    few = (boxes[:100], scores[:100], 0.5)
    yield Pair("NMS 100 boxes", lambda: nms(*few), lambda: torchvision.ops.nms(*few))
    proposals = random_boxes(count, 1067, 800, 0.3, device)
    probabilities = (torch.randn(count, 1203, device=device) * 2).softmax(dim=1)
    region, category = (probabilities > 1e-4).nonzero(as_tuple=True)
    many = (proposals[region], probabilities[region, category], category, 0.5)
    name = f"batched NMS {count} x 1203, above 1e-4"
    yield Pair(name, lambda: batched_nms(*many), lambda: torchvision.ops.batched_nms(*many))
    yield Pair("  best 300", lambda: batched_nms(*many, 300), lambda: torchvision.ops.batched_nms(*many)[:300])
    yield from soft_nms_pairs(device)


def soft_nms_pairs(device: str) -> Iterator[Pair]:
    """Yield soft-NMS jobs: the best 100 of 3000 candidates of one and of 65 classes."""
    boxes, scores = random_boxes(3000, 300, 300, 0.3, device), torch.rand(3000, device=device)
    for count in (1, 65):
        candidates = (boxes, scores, torch.randint(0, count, (3000,), device=device))

        def loop(candidates: tuple[Tensor, Tensor, Tensor] = candidates) -> Any:
            with use_implementation("reference"):
                return soft_nms(*candidates, max_detections=100)

        def ours(candidates: tuple[Tensor, Tensor, Tensor] = candidates) -> Any:
            return soft_nms(*candidates, max_detections=100)

        yield Pair(f"soft-NMS best 100 of 3000, {count} classes", ours, loop, "Python loop")


def main() -> None:
    """Print one line per job and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--implementation", default="native", help="native, or pytorch for the fall-back")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    torch.manual_seed(0)
    lines, metrics = [], {}
    with use_implementation(args.implementation):
        for threads in args.threads if args.device == "cpu" else [torch.get_num_threads()]:
            torch.set_num_threads(threads)
            jobs = [*pooling_pairs(args.device), *suppression_pairs(args.device)]
            if args.device == "cpu":
                jobs += convolution_pairs()
            for job in tqdm(jobs, desc=f"{threads} threads", unit="pair"):
                theirs = median_seconds(job.theirs, args.repeats, args.device)
                ours = median_seconds(job.ours, args.repeats, args.device)
                row = f"{theirs * 1e3:10.2f} ms {ours * 1e3:10.2f} ms {theirs / ours:8.1f} x"
                lines.append(f"{threads:3} {job.name:55} {job.opponent:12} {row}")
                metrics.setdefault(f"speedup of {threads} threads", {})[job.name.strip()] = theirs / ours
    print(f"\nthr {'job':55} {'against':12} {'theirs':>13} {'ours':>13} {'ratio':>10}")
    print("\n".join(lines))
    if args.json:
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
