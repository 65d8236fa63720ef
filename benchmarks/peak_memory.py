"""Seconds and peak memory of a function in a process of its own, shared by the benchmarks."""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import Any


def in_own_process(function: Any, *arguments: Any) -> dict[str, Any]:
    """Return the value of a function, its seconds, and the highest memory above that of an empty process, in GB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, function, arguments))
    process.start()
    result: dict[str, Any] = receiver.recv()
    process.join()
    return result


def _measure(sender: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    value = function(*arguments)
    seconds = time.perf_counter() - start
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    sender.send({"value": value, "seconds": seconds, "gigabytes": gigabytes})
