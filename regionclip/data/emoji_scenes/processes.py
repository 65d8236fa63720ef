"""Work in several processes, in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from regionclip.errors import user_error

Made = TypeVar("Made")


def made_in_processes(
    make: Callable[[int], Made],
    numbers: Sequence[int],
    start: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    chunk: int,
) -> Iterator[Made]:
    """Yield `make(number)` for each number in order, made by one process per core.

    Args:
        make: a function of a module.
        numbers: what to make.
        start: called once in each process, with `arguments`.
        arguments: of `start`.
        chunk: numbers that a process takes at a time.

    Raises:
        UserError: a process was ended from outside.
    """
    # Not forked: OpenCV's threads do not survive that.
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(mp_context=context, initializer=start, initargs=arguments) as executor:
            yield from executor.map(make, numbers, chunksize=chunk)
    except BrokenProcessPool as error:
        actual, fix = "one was ended, as for want of memory", "free memory, and run the same command again: it goes on"
        raise user_error("processes that make images", "all at work", actual, fix) from error
