"""Writers of training metrics: a console line, JSON lines, TensorBoard."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from regionclip.files import atomic_write

logger = logging.getLogger(__name__)

PERIOD = 20
"""Iterations between two lines, and window of the medians."""

METRICS_FILE = "metrics.json"
"""Detectron2's JSON lines file."""


class PeriodicLines(PeriodicWriter):
    """Writes every `period` iterations, but not when a run is stopped, since it will be resumed."""

    def __init__(self) -> None:
        """Create a hook that writes nothing before `open`."""
        super().__init__([], PERIOD)

    def open(self, folder: str | Path, start: int, max_iterations: int) -> None:
        """Open the files of a run whose next line may be that of iteration `start`."""
        self._writers = build_writers(folder, start, max_iterations)

    def after_train(self) -> None:
        """Close the files."""
        for writer in self._writers:
            writer.close()


class ConsoleLine(EventWriter):
    """One log line: iteration, time left, losses, learning rate, speed, memory."""

    def __init__(self, max_iterations: int) -> None:
        """Create a writer for a run of `max_iterations`."""
        self.max_iterations = max_iterations

    def write(self) -> None:
        """Write the line of the current iteration."""
        storage = get_event_storage()
        parts = [f"iteration {storage.iter + 1}/{self.max_iterations}"]
        seconds = _median(storage, "time")
        if seconds is not None:
            left = datetime.timedelta(seconds=int(seconds * (self.max_iterations - storage.iter - 1)))
            parts.append(f"{left} left")
        parts += [f"{name} {_median(storage, name):.4g}" for name in storage.histories() if "loss" in name]
        units = {
            "lr": "lr {:.4g}",
            "time": "{:.3f} s",
            "data_time": "{:.3f} s of it data",
            "images_per_second": "{:.3g} images/s",
            "max_memory_gb": "{:.2f} GB",
        }
        for name, text in units.items():
            value = _median(storage, name)
            if value is not None:
                parts.append(text.format(value))
        logger.info("%s", "  ".join(parts))


def _median(storage: EventStorage, name: str) -> float | None:
    if name not in storage.histories():
        return None
    return storage.history(name).median(storage.count_samples(name, PERIOD))


def build_writers(folder: str | Path, start: int, max_iterations: int) -> list[EventWriter]:
    """Return the writers of a run that starts or resumes at iteration `start`.

    Later lines of an earlier process are removed, as they will be written again.
    """
    metrics = Path(folder, METRICS_FILE)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    last_written = start - 1 if start >= max_iterations else start // PERIOD * PERIOD - 1
    if metrics.is_file():
        keep_lines(metrics, last_written)
    writers = [JSONWriter(str(metrics), PERIOD), TensorboardXWriter(str(folder), PERIOD, purge_step=last_written + 1)]
    for writer in writers:
        writer._last_write = last_written  # restored metrics up to here were written before
    return [ConsoleLine(max_iterations), *writers]


def keep_lines(path: Path, last: int) -> None:
    """Keep the complete JSON lines of a file for iterations up to `last`."""
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["iteration"] <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # partial line of a killed process
    with atomic_write(path) as file:
        file.write("".join(kept).encode())
