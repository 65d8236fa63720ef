"""Run the steps and write one JSON: card, driver, versions, date, and each step's status and results.

python -m gpu --output FOLDER [--dry-run] [--steps NAME ...] [--seconds 480]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

from gpu.datasets import find_datasets
from gpu.step import Setting, Step
from regionclip import __version__
from regionclip.files import REPOSITORY, write_json

STEPS = (
    Step("operators", "gpu.operators", 60),
    Step("kernels", "gpu.kernels", 50),
    Step("goldens", "gpu.goldens", 90),
    Step("detector", "gpu.detector", 130),
    Step("emoji", "gpu.emoji", 90),
    Step("training", "gpu.training_step", 45),
    Step("processes", "gpu.processes", 60),
    Step("memcheck", "gpu.memcheck", 60),
)
"""In order of priority, in case time does not suffice for all."""

SHORTEST = 5
"""Minimum remaining seconds for starting a step."""


def describe_machine(prepared: Path) -> dict[str, Any]:
    """Return what the results depend on: card, driver, versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    commit = prepared / "commit"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.read_text().strip() if commit.is_file() else output_of(["git", "rev-parse", "HEAD"]),
        "card": output_of(query) if torch.cuda.is_available() else "",
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "regionclip": __version__,
    }


def output_of(command: list[str]) -> str:
    """Return the output of a command; empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> int:
    """Run the steps; the exit code is 1 if a step failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "gpu")
    parser.add_argument("--prepared", type=Path, default=REPOSITORY / ".gpu", help="made by gpu_prepare.sh")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: times mean nothing")
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS], help="default: all")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print("error: expected a GPU, got none that torch sees. Fix: --dry-run for the CPU", file=sys.stderr)
        return 2
    chosen = [step for step in STEPS if args.steps is None or step.name in args.steps]
    failed = run_steps(chosen, args)
    print(f"Done: {len(chosen) - len(failed)} of {len(chosen)} steps ok; results in {args.output / 'results.json'}")
    return 1 if failed else 0


def run_steps(steps: Sequence[Step], args: argparse.Namespace) -> list[str]:
    """Run steps in order, write `results.json` after each, and return the names of failed ones."""
    args.output.mkdir(parents=True, exist_ok=True)
    # Set before any step starts, since datasets are registered with their folder.
    prepared = None if args.dry_run else args.prepared
    os.environ["DETECTRON2_DATASETS"] = str(find_datasets(prepared, args.output).resolve())
    results: dict[str, Any] = {"dry_run": args.dry_run, **describe_machine(args.prepared), "steps": {}}
    end = time.monotonic() + args.seconds
    for number, step in enumerate(steps, 1):
        limit = min(step.limit, end - time.monotonic())
        print(f"[{number}/{len(steps)}] {step.name}: at most {max(limit, 0):.0f} s", flush=True)
        if limit < SHORTEST:
            done: dict[str, Any] = {"status": "no time left", "seconds": 0.0, "results": {}, "log": ""}
        else:
            with tempfile.TemporaryDirectory() as scratch:
                setting = Setting("cpu" if args.dry_run else "cuda", args.prepared, Path(scratch))
                done = step.run(setting, args.output, limit)
        print(f"    {done['status']} after {done['seconds']:.0f} s", flush=True)
        if done["status"] != "ok":
            print(done["log"], flush=True)
        results["steps"][step.name] = done
        write_json(args.output / "results.json", results)
    return [name for name, done in results["steps"].items() if done["status"] != "ok"]


if __name__ == "__main__":
    sys.exit(main())
