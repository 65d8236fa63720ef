"""Timing functions shared by the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(job: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds of one call; on a GPU measured by two events of its stream."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    job()
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event) / 1e3


def median_seconds(job: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Return the median seconds of a job, after one warm-up call."""
    job()
    return statistics.median(seconds_of(job, device) for _ in range(repeats))
