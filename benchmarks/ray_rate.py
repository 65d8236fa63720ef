#!/usr/bin/env python3
"""Images a second of actors of Ray Data, next to one process on the same cores, with equal detections.

The rate is that of the time in which all actors are at work; the start of Ray and of its actors is reported apart. One
process is timed with one thread and with all, and the ratio is to the faster: on a machine with other work, threads
that wait for each other burn their time, and a ratio to them would be one to the disturbance.

python benchmarks/ray_rate.py [--model emoji] [--actors 2] [--images 240] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import ray
import torch

from regionclip.cli.detect_ray import reserved_cpus
from regionclip.files import REPOSITORY
from regionclip.integrations.ray import ImageDetector, TableDetector

SCENES = sorted((REPOSITORY / "datasets" / "own_scenes" / "images").glob("*.jpg"))
WORDS = ["carrot", "wood", "telescope", "hamster"]

MOST_WAITING, QUIET_LOAD = 1.5, 0.5
"""Processor time of an image with all threads relative to one, and load, above which the machine is not quiet."""


class TimedDetector(TableDetector):
    """Adds when a block was finished, by which actor, and the time of processors that an image took."""

    def __call__(self, table: Any) -> Any:
        """Return the table with `actor`, `finished` and `cpu`."""
        import pyarrow

        start = time.process_time()
        found = super().__call__(table)
        cpu = (time.process_time() - start) / len(found)
        for name, value in (("actor", os.getpid()), ("finished", time.time()), ("cpu", cpu)):
            found = found.append_column(name, pyarrow.array([value] * len(found)))
        return found


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--block", type=int, default=4, help="images of a block")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    paths = list(itertools.islice(itertools.cycle(SCENES), args.images))
    threads = max(torch.get_num_threads(), 1)
    result: dict[str, Any] = {"images": args.images, "actors": args.actors, "load before": os.getloadavg()[0]}
    single = {count: one_process(args.model, paths, count) for count in sorted({1, threads})}
    expected = {found["path"]: found["names"] for found in map(ImageDetector(WORDS, args.model, device="cpu"), _rows())}
    many = on_ray(args.model, paths, args.actors, max(threads // args.actors, 1), args.block, expected)
    result["one process by threads"] = {str(count): found for count, found in single.items()}
    result["ray"] = many
    result["speedup_ray"] = many["images/s"] / max(found["images/s"] for found in single.values())
    lines = {f"one process, {count} threads": found for count, found in single.items()} | {"ray": many}
    for name, found in lines.items():
        print(f"{name}: {found['images/s']:.2f} images/s, {found['cpu s/image']:.3f} s of processors per image")
    print(f"ratio to the faster process {result['speedup_ray']:.2f}")
    waits = single[threads]["cpu s/image"] / single[1]["cpu s/image"]
    result["quiet"] = waits < MOST_WAITING and result["load before"] < QUIET_LOAD
    if not result["quiet"]:
        print(f"warning: the machine has other work (load {result['load before']:.1f}, threads burn {waits:.1f} times)")
    if args.json:
        print(json.dumps(result))


def _rows() -> list[dict[str, str]]:
    return [{"path": str(path)} for path in SCENES]


def one_process(model: str, paths: list[Path], threads: int) -> dict[str, float]:
    """Return the rate of this process with a number of threads."""
    begin = time.perf_counter()
    detector = ImageDetector(WORDS, model, device="cpu", threads=threads)
    detector({"path": str(paths[0])})  # the first call is slower
    start, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        detector({"path": str(path)})
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"images/s": len(paths) / seconds, "cpu s/image": cpu / len(paths), "start": start - begin}


def on_ray(
    model: str, paths: list[Path], actors: int, threads: int, block: int, expected: dict[str, list[str]]
) -> dict[str, float]:
    """Return the rate of actors from the first block of the last one that starts until one has nothing left.

    The class names of each row have to be those `expected` by path.
    """
    begin = time.time()
    # One more logical CPU than the machine may have: it only reads.
    ray.init(address="local", num_cpus=actors + 1, include_dashboard=False, logging_level="error")
    images = ray.data.from_items([{"path": str(path)} for path in paths])
    found = images.repartition(target_num_rows_per_block=block, strict=True).map_batches(
        TimedDetector,
        batch_format="pyarrow",
        fn_constructor_args=(WORDS, model),
        fn_constructor_kwargs={"device": "cpu", "threads": threads},
        concurrency=actors,
        num_cpus=reserved_cpus(1, actors, actors + 1),
    )
    rows = found.select_columns(["path", "names", "error", "actor", "finished", "cpu"]).take_all()
    ray.shutdown()
    wrong = [row["path"] for row in rows if row["error"] or list(row["names"]) != expected[row["path"]]]
    assert not wrong, f"other detections than in one process: {wrong[:3]}"
    times: dict[int, list[float]] = {}
    for row in rows:
        times.setdefault(row["actor"], []).append(row["finished"])
    assert len(times) == actors and len(rows) == len(paths), "an actor had nothing to do; use more images"
    start, end = max(map(min, times.values())), min(map(max, times.values()))
    between = sum(start < moment <= end for moments in times.values() for moment in moments)
    cpu = sum(row["cpu"] for row in rows) / len(rows)
    rate = between / (end - start)
    return {"images/s": rate, "cpu s/image": cpu, "start": start - begin, "images counted": between}


if __name__ == "__main__":
    main()
