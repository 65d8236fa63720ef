"""Drawing and writing in a background thread, during the next detection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

JOBS_BEHIND = 4
"""Maximum number of queued jobs."""


class WriteBehind:
    """Runs jobs one after the other in a background thread."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._thread = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the jobs, so that results are kept when a run is interrupted."""
        self._thread.shutdown()

    def submit(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Queue a job; raises what an earlier one raised."""
        self._waiting.append(self._thread.submit(job, *arguments))
        self.wait(JOBS_BEHIND)

    def wait(self, left: int = 0) -> None:
        """Wait until at most `left` jobs remain; raises what one of them raised."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()
