#!/usr/bin/env python3
"""Compare each stage with the limits of the machine, for a detector with seven user boxes, image by image.

    python benchmarks/roofline.py [--model RN50|RN50x4] [--repeat 7] [--json]

A stage takes at least as long as its multiplications at the speed of a large matrix product, and as moving its
maps and weights once at the speed of a copy; `bound` is the larger of the two. Multiplications are those of direct
convolutions: Winograd convolution needs a quarter to four ninths of them, so a stage can be below its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from e2e import make_model, read_inputs
from gpu.work_counter import count_work
from tabulate import tabulate
from timing import median_seconds
from torch import Tensor, nn

from regionclip.memory import keep_freed_memory
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.inference.prepare import prepare_for_inference

STAGES = ("preprocessing", "stem", "res2", "res3", "res4", "RoIAlign", "res5", "attention pool and scores")
"""Consecutive stages; each ends where a module begins or ends."""


@contextmanager
def watched(model: CLIPFastRCNN, mark: Callable[[], None]) -> Iterator[None]:
    """Call `mark` at the end of each stage except the last."""
    image_encoder = clip_image_encoder(model.backbone)
    assert image_encoder is not None
    stages = image_encoder.stages

    def before(module: nn.Module, arguments: Any) -> None:
        mark()

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        mark()

    def stem(x: Tensor) -> Tensor:
        mark()
        return whole(x)

    whole = image_encoder.stem
    handles = [stages["res2"].register_forward_pre_hook(before)]
    handles += [stages[name].register_forward_hook(after) for name in ("res2", "res3", "res4", "res5")]
    handles.append(stages["res5"].register_forward_pre_hook(before))
    with mock.patch.object(image_encoder, "stem", stem):
        yield
    for handle in handles:
        handle.remove()


def stage_seconds(model: CLIPFastRCNN, inputs: list[dict[str, Any]], repeat: int) -> dict[str, float]:
    """Return the median seconds of each stage."""
    rounds: list[list[float]] = []
    for number in range(repeat + 1):
        marks = [time.perf_counter()]
        with watched(model, lambda marks=marks: marks.append(time.perf_counter())):  # type: ignore[misc]
            model.inference(inputs, do_postprocess=False)
        marks.append(time.perf_counter())
        if number:  # the first round is a warm-up
            rounds.append([end - start for start, end in itertools.pairwise(marks)])
    return dict(zip(STAGES, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def stage_work(model: CLIPFastRCNN, inputs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the counts of `count_work` for each stage: the difference between its end and its start."""
    work: list[dict[str, float]] = []
    for count in range(1, len(STAGES)):
        work.append(count_work(lambda count=count: run_until(model, inputs, count)))  # type: ignore[misc]
    work.append(count_work(lambda: model.inference(inputs, do_postprocess=False)))
    before = [{"TFLOP": 0.0, "GB": 0.0}, *work]
    return {
        name: {unit: after[unit] - start[unit] for unit in after}
        for name, start, after in zip(STAGES, before, work, strict=False)
    }


class Enough(Exception):
    """The requested number of stages is done."""


def run_until(model: CLIPFastRCNN, inputs: list[dict[str, Any]], count: int) -> None:
    """Run the first `count` stages."""
    done = [0]

    def mark() -> None:
        done[0] += 1
        if done[0] == count:
            raise Enough

    try:
        with watched(model, mark):
            model.inference(inputs, do_postprocess=False)
    except Enough:
        pass


def ceilings(repeat: int) -> tuple[float, float]:
    """Return FLOP/s of a large matrix product in float32, and bytes/s of a copy, counting read and write."""
    factor, source = torch.randn(2048, 2048), torch.empty(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = median_seconds(lambda: factor @ factor, repeat)
    return 2 * 2048**3 / product, 2 * source.numel() / median_seconds(lambda: target.copy_(source), repeat)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", choices=["RN50", "RN50x4"])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    inputs = read_inputs(arguments.model, 1)
    plain = make_model(arguments.model, "gt", 1000).eval()
    operations = {name: work["TFLOP"] * 1e12 for name, work in stage_work(plain, inputs).items()}
    plain_seconds = stage_seconds(plain, inputs, arguments.repeat)
    keep_freed_memory()
    model = prepare_for_inference(plain)
    own_seconds = stage_seconds(model, inputs, arguments.repeat)
    moved = {name: work["GB"] * 1e9 for name, work in stage_work(model, inputs).items()}
    flops, bandwidth = ceilings(arguments.repeat)
    rows = {}
    for name in STAGES:
        bound = max(operations[name] / flops, moved[name] / bandwidth)
        rows[name] = {
            "GFLOP": operations[name] / 1e9,
            "GB": moved[name] / 1e9,
            "bound, ms": bound * 1e3,
            "ms": own_seconds[name] * 1e3,
            "bound / taken": bound / own_seconds[name],
            "as loaded, ms": plain_seconds[name] * 1e3,
        }
    print(
        f"{arguments.model}, {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s, {torch.get_num_threads()} threads"
    )
    print(tabulate([[name, *row.values()] for name, row in rows.items()], headers=["", *rows["stem"]], floatfmt=".2f"))
    print(f"in all: {sum(plain_seconds.values()) / sum(own_seconds.values()):.2f} times as fast as loaded")
    if arguments.json:
        print(json.dumps({"FLOP/s": flops, "bytes/s": bandwidth, "stages": rows}))


if __name__ == "__main__":
    main()
