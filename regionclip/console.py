"""The streams of a command: a reader that stops listening does not end the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _MayClose:
    """A text stream whose reader may go away: what is written after that is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, if somebody reads it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Pass on what is waiting."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # What waits in the buffer has to go somewhere, at the latest when Python ends.
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def streams_that_may_close() -> Iterator[None]:
    """Do a block during which a reader of standard output or error may go away, as `head` does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _MayClose(before[0]), _MayClose(before[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # closed by somebody
                stream.flush()
        sys.stdout, sys.stderr = before
