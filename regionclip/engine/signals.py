"""Graceful stop on SIGTERM and Ctrl-C: at the end of a step, or immediately where nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.utils import comm


class Interrupted(BaseException):
    """A signal arrived during work that may be aborted at any point."""


_active: StopSignals | None = None


def stop_requested() -> bool:
    """Return whether a signal has arrived, in a run that uses `StopSignals`."""
    return _active is not None and _active.received is not None


class StopSignals:
    """Records the first signal; a second Ctrl-C has its usual effect."""

    def __init__(self) -> None:
        """Create the object; recording starts on entering `with`."""
        self.received: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the signal handlers."""
        global _active
        _active = self
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous signal handlers."""
        global _active
        _active = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run a block that a signal aborts with `Interrupted`.

        In a group of processes none may leave alone: there `run_inference` checks for signals.
        """
        if any(comm.all_gather(self.received)):
            raise Interrupted
        self._at_once = comm.get_world_size() == 1
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._at_once:
            raise Interrupted
