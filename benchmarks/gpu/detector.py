"""Whole detectors: images per second, memory and profile, of this package and the baseline in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from baseline import PlainDetector
from e2e import make_model, read_inputs
from timing import median_seconds
from torch.profiler import ProfilerActivity, profile

from gpu.ceilings import measure_ceilings
from gpu.step import Notes, Setting
from gpu.work_counter import count_work
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.inference.prepare import prepare_for_inference

WORDS = 1203
PROFILED = ("plain float32", "float32", "float16")
PROFILE_ROWS = 10


@dataclass(frozen=True)
class Variant:
    """A variant: precision of this package or the baseline, and whether convolutions may use TF32."""

    precision: str | None
    tf32: bool
    ceiling: str
    """The entry of `measure_ceilings` that bounds it."""


PATHS = {
    "plain float32": Variant(None, False, "float32"),
    "plain TF32": Variant(None, True, "TF32"),
    "float32": Variant("float32", False, "float32"),
    "TF32": Variant("float32", True, "TF32"),
    "float16": Variant("float16", True, "float16"),
    "bfloat16": Variant("bfloat16", True, "bfloat16"),
}
"""TF32 is torch's default for convolutions."""


def work(setting: Setting, notes: Notes) -> None:
    """Record ceilings, then each model, path and batch; a failing one does not affect the next."""
    torch.set_grad_enabled(False)
    ceilings = measure_ceilings(setting.device, 256 if setting.is_dry_run else 8192)
    notes["ceilings"] = ceilings
    models, batches, proposals = (["RN50"], [1], 8) if setting.is_dry_run else (["RN50", "RN50x4"], [1, 8], 1000)
    for name in models:
        master = make_model(name, "rpn", proposals)
        inputs = small_inputs() if setting.is_dry_run else read_inputs(name, max(batches))
        for path in ["plain float32", "float32"] if setting.is_dry_run else PATHS:
            detect = prepare(master, path, setting.device)
            for batch in batches:
                key = f"{name}, batch {batch}, {path}"
                try:
                    notes[key] = measure(detect, inputs[:batch], setting, ceilings, PATHS[path].ceiling)
                except torch.OutOfMemoryError as error:
                    notes[key] = {"failed": str(error).splitlines()[0]}
            if path in PROFILED:
                notes[f"{name}, profile of {path}"] = profile_rows(partial(detect, inputs[:1]), setting.device)
            del detect
            torch.cuda.empty_cache()


def small_inputs() -> list[dict[str, Any]]:
    """Return one small image, for a dry run."""
    return [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "height": 96, "width": 128}]


def prepare(master: CLIPFastRCNN, path: str, device: str) -> Callable[[Sequence[dict[str, Any]]], Any]:
    """Return a function that detects in a batch by one of `PATHS`."""
    chosen = PATHS[path]
    torch.backends.cudnn.allow_tf32 = chosen.tf32
    model = copy.deepcopy(master).to(device)
    if chosen.precision is None:
        return PlainDetector(model)
    prepare_for_inference(model, chosen.precision)
    return lambda batch: model.inference(batch, do_postprocess=False)


def measure(
    detect: Callable[[Sequence[dict[str, Any]]], Any],
    batch: Sequence[dict[str, Any]],
    setting: Setting,
    ceilings: dict[str, float],
    ceiling: str,
) -> dict[str, float | None]:
    """Return rates, peak memory, counted work, and its fraction of the ceilings."""
    on_gpu = setting.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(lambda: detect(batch), 1 if setting.is_dry_run else 5, setting.device)
    counted = count_work(lambda: detect(batch))
    return {
        "images_per_second": len(batch) / seconds,
        "ms_per_image": seconds / len(batch) * 1e3,
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        **counted,
        "share_of_products": counted["TFLOP"] / seconds / ceilings[f"TFLOP/s of {ceiling}"],
        "share_of_bandwidth": counted["GB"] / seconds / ceilings["GB/s"],
    }


def profile_rows(job: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """Return the kernels (on a CPU, the operators) that take the most time in one call."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    key = f"self_{activity.name.lower()}_time_total" if device == "cpu" else "self_device_time_total"
    job()
    with profile(activities=[activity]) as profiler:
        job()
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in events)
    return [
        {
            "name": event.key[:100],
            "calls": event.count,
            "ms": getattr(event, key) / 1e3,
            "share": getattr(event, key) / total,
        }
        for event in events[:PROFILE_ROWS]
    ]
