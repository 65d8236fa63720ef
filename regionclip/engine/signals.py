"""SIGTERM and Ctrl-C as a wish to stop: at the end of the step, or at once where nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.utils import comm


class Interrupted(BaseException):
    """A signal arrived while the work could be left at any point."""


_active: StopSignals | None = None


def stop_requested() -> bool:
    """Return whether a signal has arrived in a run that notes them."""
    return _active is not None and _active.received is not None


class StopSignals:
    """Notes the first signal; a second Ctrl-C has its usual effect."""

    def __init__(self) -> None:
        """Make an object that notes nothing before `with` is entered."""
        self.received: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Start noting."""
        global _active
        _active = self
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to who had them."""
        global _active
        _active = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run a block that a signal ends with `Interrupted`.

        Of several processes none may leave alone: there `run_inference` looks at the signals.
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
