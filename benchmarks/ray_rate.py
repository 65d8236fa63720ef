#!/usr/bin/env python3
"""Images a second of actors of Ray Data, next to one process with as many threads on the same cores.

The rate is that of the time in which all actors are at work; the start of Ray and of its actors is reported apart.

python benchmarks/ray_rate.py [--model emoji] [--actors 2] [--images 120] [--json]
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


class TimedDetector(TableDetector):
    """Adds when a block was finished, and by which actor."""

    def __call__(self, table: Any) -> Any:
        """Return the table with `actor` and `finished`."""
        import pyarrow

        found = super().__call__(table)
        for name, value in (("actor", os.getpid()), ("finished", time.time())):
            found = found.append_column(name, pyarrow.array([value] * len(found)))
        return found


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--block", type=int, default=4, help="images of a block")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    paths = list(itertools.islice(itertools.cycle(SCENES), args.images))
    threads = max(torch.get_num_threads(), 1)
    result: dict[str, Any] = {"images": args.images, "actors": args.actors, "threads of one process": threads}
    result["one process"] = one = one_process(args.model, paths)
    result["ray"] = many = on_ray(args.model, paths, args.actors, max(threads // args.actors, 1), args.block)
    result["speedup_ray"] = many["images/s"] / one["images/s"]
    for name in ("one process", "ray"):
        print(f"{name}: {result[name]['images/s']:.2f} images/s after a start of {result[name]['start']:.0f} s")
    print(f"ratio {result['speedup_ray']:.2f}")
    if args.json:
        print(json.dumps(result))


def one_process(model: str, paths: list[Path]) -> dict[str, float]:
    """Return the rate of this process."""
    begin = time.perf_counter()
    detector = ImageDetector(WORDS, model, device="cpu")
    detector({"path": str(paths[0])})  # the first call is slower
    start = time.perf_counter()
    for path in paths:
        detector({"path": str(path)})
    return {"images/s": len(paths) / (time.perf_counter() - start), "start": start - begin}


def on_ray(model: str, paths: list[Path], actors: int, threads: int, block: int) -> dict[str, float]:
    """Return the rate of actors from the first block of the last one that starts until one has nothing left."""
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
    rows = found.select_columns(["actor", "finished"]).take_all()
    ray.shutdown()
    times: dict[int, list[float]] = {}
    for row in rows:
        times.setdefault(row["actor"], []).append(row["finished"])
    assert len(times) == actors and len(rows) == len(paths), "an actor had nothing to do; use more images"
    start, end = max(map(min, times.values())), min(map(max, times.values()))
    between = sum(start < moment <= end for moments in times.values() for moment in moments)
    return {"images/s": between / (end - start), "start": start - begin, "images counted": between}


if __name__ == "__main__":
    main()
