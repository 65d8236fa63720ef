"""Throughput and memory of a training step of the published COCO config, in float32 and with AMP."""

from __future__ import annotations

import torch
from training import LARGEST, time_steps

from gpu.step import Notes, Setting

CASE, IMAGES = "rn50-coco", 2


def work(setting: Setting, notes: Notes) -> None:
    """Record both; peak memory is that of a process used for nothing else."""
    size, steps, more = (
        ((96, 128), 1, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 4") if setting.is_dry_run else (LARGEST, 5, "")
    )
    for amp in (False,) if setting.is_dry_run else (False, True):
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, used = time_steps(CASE, IMAGES, steps, amp=amp, size=size, more=more)
        notes["AMP" if amp else "float32"] = {"images_per_second": IMAGES / seconds, "peak_GB": used / 1e9}
