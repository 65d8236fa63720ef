"""One step of the run: its work in a process of its own, its time limit, its result file and its log."""

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
"""Characters of a log that go into the results."""

PRELOADED = ["torchvision", "detectron2.modeling", "regionclip.predictor", "regionclip.engine.workflows"]
"""Imported once for all steps; none of them touches the GPU."""


@dataclass(frozen=True)
class Setting:
    """What a step is told."""

    device: str
    """`cuda`, or `cpu` in a dry run."""

    prepared: Path
    """What `benchmarks/gpu_prepare.sh` made; need not be there."""

    scratch: Path
    """A folder for files that nobody keeps."""

    @property
    def is_dry_run(self) -> bool:
        """Whether sizes are tiny, and times mean nothing."""
        return self.device == "cpu"


class Notes:
    """What a step has measured; each entry is on disk at once, so that a step that is stopped loses none."""

    def __init__(self, path: Path) -> None:
        """Write to a JSON file."""
        self.path = path
        self.values: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        """Note a value that JSON can hold."""
        self.values[name] = value
        write_json(self.path, self.values)


Work = Callable[[Setting, Notes], None]


@dataclass(frozen=True)
class Step:
    """A name, the `work(setting, notes)` of a module of this package, and the seconds it may take."""

    name: str
    module: str
    limit: float

    def run(self, setting: Setting, folder: Path, limit: float) -> dict[str, Any]:
        """Do the work in a process; return its status, seconds, results and the end of its log.

        Args:
            setting: passed to the work.
            folder: gets `<name>.json` and `<name>.log`.
            limit: in seconds; after it the process and its children are killed.
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
    os.setsid()  # a group of its own, so that its children end with it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        import_module(module).work(setting, Notes(results))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
