"""The progress bar of long work: done, total, elapsed, remaining and rate."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.1, 30.0
"""Time between two updates on a terminal, and in a file."""


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    unit: str,
    total: int | None = None,
    description: str = "",
    hidden: bool = False,
    **options: Any,
) -> tqdm[Any]:
    """Return a progress bar on standard error.

    Args:
        items: what is done, one after the other; None if the caller counts with `update`.
        unit: name of one item.
        total: number of items; None takes the length of `items`.
        description: what is done; the plural of `unit` by default.
        hidden: show nothing, as in all but the main process.
        options: further ones of tqdm.
    """
    interval = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    name = description or f"{unit}s"
    return tqdm(items, total=total, desc=name, unit=unit, disable=hidden, mininterval=interval, **options)
