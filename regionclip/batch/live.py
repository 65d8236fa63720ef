"""Detection on a live source: its frames, its output folder, and how it ends."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regionclip.batch.encode_ahead import Prepared
from regionclip.data.image_sources import Frame, ImageFile
from regionclip.data.images import UnreadableImageError
from regionclip.data.live import LiveReader
from regionclip.errors import user_error

SHOWN_CLASSES = 4
"""Maximum number of class names in the status line."""


class LiveFrames:
    """Yields the newest frame of a live source again and again, prepared for the detector."""

    def __init__(self, reader: LiveReader, prepare: Callable[[Frame], Prepared]) -> None:
        """Create a source of frames, of an opened reader."""
        self._reader, self._prepare = reader, prepare

    def frames(self, file: ImageFile) -> Iterator[Prepared]:
        """Yield frames as `ReadAhead.frames` does.

        Raises:
            UnreadableImageError: the source broke off.
        """
        yield from map(self._prepare, self._reader.frames())
        if self._reader.problem:
            raise UnreadableImageError(self._reader.problem)


def live_status(reader: LiveReader, result: dict[str, Any]) -> str:
    """Return what the status line shows: the objects in the newest frame, and the number of dropped frames."""
    counts = Counter(entry["word"] for entry in result["detections"])
    shown = [f"{word} {count}" for word, count in counts.most_common(SHOWN_CLASSES)]
    more = ["..."] if len(counts) > SHOWN_CLASSES else []
    return f"{', '.join(shown + more) or 'no detections'}; {reader.dropped} frames dropped; Ctrl-C ends"


def require_new_folder(output: Path, results_file: str) -> None:
    """Raise a `UserError` if a folder has results: those of a live source could never be had again.

    Args:
        output: folder that a live source will write to.
        results_file: name of the file of finished results.
    """
    unfinished = sorted(path.name for path in output.glob("*.jsonl"))
    found = [results_file] if (output / results_file).exists() else unfinished
    if found:
        expected, actual = "a folder without results, since a live source cannot be continued", found[0]
        raise user_error(f"output {output}", expected, actual, "name another folder, or remove it")


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Run a block in which the first Ctrl-C, or a termination signal, calls `stop`; the next one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(number: int, frame: object) -> None:
        restore()
        stop()

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()
