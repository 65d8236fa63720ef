"""Standard streams of a command: a closed pipe does not abort the run; questions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _MayClose:
    """A text stream whose reader may close it: later output is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text unless the stream is closed."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush the stream unless it is closed."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # Buffered text must go somewhere, at the latest when Python exits.
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def streams_that_may_close() -> Iterator[None]:
    """Run a block during which a reader of standard output or error may close it, as `head` does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _MayClose(before[0]), _MayClose(before[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # closed already
                stream.flush()
        sys.stdout, sys.stderr = before


def can_ask() -> bool:
    """Return whether there is a person at a terminal."""
    return sys.stdin.isatty() and _is_terminal()


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Ask on the terminal, and return whether the answer is yes, which an empty line is."""
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().lower() in ("\n", "y\n", "yes\n")
