"""RoIAlign, NMS and soft-NMS against torchvision's kernels and the loop, in one process, timed by device events."""

from __future__ import annotations

import torch
from ops import pooling_pairs, suppression_pairs
from timing import median_seconds

from gpu.step import Notes, Setting


def work(setting: Setting, notes: Notes) -> None:
    """Record the medians of both, in ms, and their ratio."""
    count, repeats = (20, 1) if setting.is_dry_run else (1000, 20)
    torch.manual_seed(0)
    for pair in [*pooling_pairs(setting.device, count), *suppression_pairs(setting.device, count)]:
        theirs, ours = (median_seconds(job, repeats, setting.device) for job in (pair.theirs, pair.ours))
        notes[pair.name.strip()] = {
            "against": pair.opponent,
            "theirs_ms": theirs * 1e3,
            "ours_ms": ours * 1e3,
            "ratio": theirs / ours,
        }
