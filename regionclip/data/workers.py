"""Worker processes of data loaders: a failure in one ends the command, and never leaves it waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from regionclip.errors import user_error

LONGEST_WAIT = 1800
"""Seconds for a batch after which its worker is given up."""


def wait_limit(workers: int) -> int:
    """Return the `timeout` of a `DataLoader` in seconds: none where the process reads its images itself."""
    return LONGEST_WAIT if workers else 0


def arriving(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader with `wait_limit`.

    A batch that cannot be sent is lost: its worker waits for the next request, and the process for the batch.

    Raises:
        UserError: a batch did not arrive.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if not str(error).startswith("DataLoader timed out"):
            raise
        for worker in getattr(iterator, "_workers", ()):
            worker.kill()  # one that hangs in a read heeds nothing else, and would be waited for at the end
        expected, actual = f"a batch within {loader.timeout:g} s", "none"
        fix = "see the errors above; run the same command again (training with --resume), or with NUM_WORKERS 0"
        raise user_error("worker process of DATALOADER.NUM_WORKERS", expected, actual, fix) from error


def allow_open_files() -> None:
    """Let this process open as many files as its user may: each tensor that a worker sends is one while it lives."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
