#!/usr/bin/env python3
"""Store benchmark results in docs/metrics.json, and compare a machine with them.

    python benchmarks/metrics.py run NAME ...       # runs benchmarks and writes their results
    python benchmarks/metrics.py compare NAME ...   # runs them and fails if a ratio fell by more than a quarter
    python benchmarks/metrics.py show               # prints tables for the documentation

Results are stored by instruction set, each with its machine; only ratios within one run are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe
from tabulate import tabulate

from regionclip.files import REPOSITORY, atomic_write

FILE = REPOSITORY / "docs" / "metrics.json"

BENCHMARKS = {
    "ops": ["ops.py"],
    "roofline": ["roofline.py"],
    "e2e_rn50": ["e2e.py", "--images", "2", "--repeat", "2"],
    "e2e_rn50_given_boxes": ["e2e.py", "--boxes", "gt"],
    "e2e_emoji": ["e2e.py", "--model", "emoji"],
    "e2e_rn50x4": ["e2e.py", "--model", "RN50x4", "--images", "1", "--repeat", "2"],
    "head": ["head.py"],
    "cost": ["cost.py"],
    "vocabulary": ["vocabulary.py"],
    "early_end_emoji": ["early_end.py"],
    "evaluation": ["eval.py"],
    "peers": ["peers.py"],
    "retrieval": ["retrieval.py"],
    "lp_ovod": ["lp_ovod.py"],
    "crop_clip": ["crop_clip.py"],
    "ralf": ["ralf.py"],
    "serve": ["serve.py"],
    "ray_rate": ["ray_rate.py"],
    "examples_style": ["examples.py", "--split", "style", "--limit", "600"],
    "examples_val": ["examples.py", "--split", "val", "--limit", "600"],
}
"""Command of each benchmark; all accept `--json`, which prints the result as the last line."""

ALLOWED_LOSS = 0.25
"""Relative decrease of a ratio that is tolerated: shared machines vary by this much."""


def run(name: str) -> Any:
    """Run a benchmark, show its output, and return its result; raises `CalledProcessError` if it fails."""
    script, *options = BENCHMARKS[name]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *lines, last = done.stdout.strip().splitlines()
    print("\n".join(lines), flush=True)
    return json.loads(last)


def kept() -> dict[str, dict[str, Any]]:
    """Return the stored results by instruction set and name."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def ratios(result: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield name and value of each number below a key with the prefix `speedup`."""
    if isinstance(result, dict):
        for key, value in result.items():
            yield from ratios(value, f"{path}/{key}")
    elif isinstance(result, int | float) and "/speedup" in path:
        yield path, float(result)


def slower(result: Any, before: Any) -> list[str]:
    """Return one line for each ratio that fell by more than is allowed."""
    known = dict(ratios(before))
    return [
        f"{name}: {value:.2f}, was {known[name]:.2f}"
        for name, value in ratios(result)
        if name in known and value < known[name] * (1 - ALLOWED_LOSS)
    ]


def show(metrics: dict[str, dict[str, Any]]) -> None:
    """Print all ratios, one column per instruction set."""
    table: dict[str, dict[str, float]] = {}
    for instruction_set, results in metrics.items():
        for name, entry in results.items():
            for ratio, value in ratios(entry["result"], name):
                table.setdefault(ratio, {})[instruction_set] = value
    rows = [{"ratio": name, **values} for name, values in table.items()]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))


def main() -> int:
    """Run, compare or show; the exit code is 1 if a ratio fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "compare", "show"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--output", type=Path, default=FILE, help="file to write")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BENCHMARKS)}")
    metrics = kept()
    if arguments.action == "show":
        show(metrics)
        return 0
    machine, worse = describe(), []
    own = metrics.setdefault(str(machine["instruction_set"]), {})
    for name in arguments.names or BENCHMARKS:
        result = run(name)
        if arguments.action == "compare":
            worse += [f"{name}{line}" for line in slower(result, own.get(name, {}).get("result"))]
        else:
            own[name] = {"machine": machine, "result": result}
            with atomic_write(arguments.output) as file:
                file.write(f"{json.dumps(metrics, indent=2)}\n".encode())
    print("\n".join(worse) if worse else "Done: no ratio fell")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
