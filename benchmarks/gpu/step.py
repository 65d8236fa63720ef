"""One step of the run: a separate process with a time limit, a result file and a log."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from regionclip.files import read_json_file, write_json

LOG_TAIL = 4000
"""Number of log characters in the results."""

PRELOADED = ["torchvision", "detectron2.modeling", "regionclip.predictor", "regionclip.engine.workflows"]
"""Imported once for all steps; none of them initializes CUDA."""


@dataclass(frozen=True)
class Setting:
    """Settings of a step."""

    device: str
    """`cuda`, or `cpu` in a dry run."""

    prepared: Path
    """Output of `benchmarks/gpu_prepare.sh`; may be missing."""

    scratch: Path
    """A folder for temporary files."""

    @property
    def is_dry_run(self) -> bool:
        """Whether sizes are tiny, and times meaningless."""
        return self.device == "cpu"


class Notes:
    """Measurements of a step; each entry is written to disk immediately, so that a killed step loses none."""

    def __init__(self, path: Path) -> None:
        """Write to a JSON file."""
        self.path = path
        self.values: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        """Record a JSON-compatible value."""
        self.values[name] = value
        write_json(self.path, self.values)


Work = Callable[[Setting, Notes], None]


@dataclass(frozen=True)
class Step:
    """A name, a module of this package with `work(setting, notes)`, and the time limit in seconds."""

    name: str
    module: str
    limit: float

    def run(self, setting: Setting, folder: Path, limit: float) -> dict[str, Any]:
        """Run the step in a process; return its status, seconds, results and the end of its log.

        Args:
            setting: passed to `work`.
            folder: gets `<name>.json` and `<name>.log`.
            limit: in seconds; then the process and its children are killed.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        results, log = folder / f"{self.name}.json", folder / f"{self.name}.log"
        process = context.Process(target=_work, args=(self.module, setting, results, log))
        start = time.monotonic()
        process.start()
        process.join(limit)
        status = {None: f"stopped after {limit:.0f} s", 0: "ok"}.get(process.exitcode, "failed")
        if process.pid is not None and process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return {
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            "results": read_json_file(results) or {},
            "log": log.read_text(errors="replace")[-LOG_TAIL:] if log.is_file() else "",
        }


def _work(module: str, setting: Setting, results: Path, log: Path) -> None:
    os.setsid()  # a separate process group, so that its children are killed with it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        import_module(module).work(setting, Notes(results))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
