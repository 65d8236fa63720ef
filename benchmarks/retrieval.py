#!/usr/bin/env python3
"""Retrieval among stored regions: seconds and memory, next to a full table of cosines that is sorted.

python benchmarks/retrieval.py [--rows 1000000] [--names 17] [--count 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from peak_memory import in_own_process
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from regionclip.methods.lp_ovod.retrieval import retrieve

DIM, ROWS_PER_SHARD = 512, 50_000


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--names", type=int, default=17)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    text = torch.randn(args.names, DIM, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), args.rows)
        ways = {"table": by_table, "streamed": streamed}
        measured = {name: in_own_process(way, folder, text, args.count) for name, way in ways.items()}
    equal = measured["table"]["value"] == measured["streamed"]["value"]
    for name, result in measured.items():
        print(f"{name}: {result['seconds']:.1f} s, {result['gigabytes']:.2f} GB above an empty process")
    ratio = measured["table"]["seconds"] / measured["streamed"]["seconds"]
    print(f"{args.rows} rows, {args.names} names: {'equal' if equal else 'DIFFERENT'} rows, {ratio:.2f} times as fast")
    if args.json:
        kept = {name: {key: result[key] for key in ("seconds", "gigabytes")} for name, result in measured.items()}
        print(json.dumps({"rows": args.rows, "names": args.names, "equal": equal, **kept}))


def write_shards(folder: Path, rows: int) -> None:
    """Write random embeddings in float16."""
    for number, first in enumerate(range(0, rows, ROWS_PER_SHARD)):
        generator = torch.Generator().manual_seed(1000 + number)
        part = torch.randn(min(ROWS_PER_SHARD, rows - first), DIM, generator=generator).half()
        save_file({"feats": part, "objectness": torch.ones(len(part))}, folder / f"{number:05}.safetensors")


def streamed(folder: str, text: torch.Tensor, count: int) -> list[list[int]]:
    """Return the rows of each name, shard by shard."""
    shards = (load_file(path) for path in sorted(Path(folder).iterdir()))
    return [best.rows.tolist() for best in retrieve(shards, text, count, 0.6)]


def by_table(folder: str, text: torch.Tensor, count: int) -> list[list[int]]:
    """Return the rows of each name from the table of all cosines, sorted."""
    rows = torch.cat([load_file(path)["feats"] for path in sorted(Path(folder).iterdir())])
    table = F.normalize(text.double(), dim=1) @ F.normalize(rows.double(), dim=1).T
    order = table.round(decimals=9).argsort(dim=1, descending=True, stable=True)
    return order[:, :count].tolist()


if __name__ == "__main__":
    main()
