"""Drawing and writing in another thread, while the next picture is looked at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

JOBS_BEHIND = 4
"""So many jobs wait at most."""


class WriteBehind:
    """Does jobs one after the other in another thread."""

    def __init__(self) -> None:
        """Start without a job."""
        self._thread = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the jobs, so that what was seen is kept when a run is interrupted."""
        self._thread.shutdown()

    def submit(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Do a job later; raises what an earlier one raised."""
        self._waiting.append(self._thread.submit(job, *arguments))
        self.wait(JOBS_BEHIND)

    def wait(self, left: int = 0) -> None:
        """Wait until no more than so many jobs are left; raises what one of them raised."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()
