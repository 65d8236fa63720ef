"""Worker processes behind a queue: batches, deadlines, and jobs that outlive their worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from regionclip.errors import UserError, user_error
from regionclip.web.jobs import BUSY, FAILED, Answer, Job, WorkerSettings, refusal

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
"""Workers that a job may end; one that ends two is not given to a third."""

START_SECONDS = 300.0
"""Limit of the start of a worker, which may load gigabytes."""

RESTART_SECONDS = 1.0
"""Time between two starts of a worker that cannot start."""


@dataclass(frozen=True)
class PoolSettings:
    """Size of a pool, and its limits."""

    workers: int = 1
    batch: int = 1
    """Maximum number of jobs that a worker gets at once."""
    batch_seconds: float = 0.005
    """Time that the first job of a batch waits for others."""
    queue: int = 64
    """Jobs that may wait."""
    seconds: float = 60.0
    """Time from the arrival of a job to its answer, and limit of what a worker computes at once."""


@dataclass(eq=False)
class _Waiting:
    job: Job
    resolve: Callable[[Answer], None]
    attempts: int = 0


@dataclass
class PoolState:
    """Counters of a pool."""

    restarts: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    """Number of batches by their number of jobs."""


def run_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Run a worker; its process imports the detector."""
    from regionclip.web import worker

    worker.run_worker(connection, settings)


class WorkerPool:
    """Gives jobs to worker processes, and restarts those that end."""

    def __init__(self, worker: WorkerSettings, settings: PoolSettings) -> None:
        """Prepare a pool; `start` starts it."""
        self.worker, self.settings, self.state = worker, settings, PoolState()
        self.description: dict[str, Any] = {}
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, BaseProcess] = {}
        self._ready: set[int] = set()

    def start(self) -> None:
        """Start the workers, and return when all are ready.

        Raises:
            UserError: the detector cannot be loaded.
        """
        connections = [self._start_worker(number) for number in range(self.settings.workers)]
        for number, connection in enumerate(connections):
            try:
                self.description = self._first_message(number, connection)
            except (EOFError, OSError) as error:
                actual, fix = f"it ended while it started ({error or 'no message'})", "see the lines above; free memory"
                raise user_error("a worker", "a detector that answers", actual, fix) from error
            thread = threading.Thread(target=self._serve, args=(number, connection), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def queued(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._waiting)

    @property
    def alive(self) -> int:
        """Workers that have loaded their detector, and whose process lives."""
        return sum(self._processes[number].is_alive() for number in list(self._ready))

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes.values() if process.pid is not None]

    async def answer(self, job: Job, since: float | None = None) -> Answer:
        """Return the answer to a job, or a refusal if too many wait or its time is over.

        Args:
            job: what to do.
            since: `time.monotonic()` of the request, whose image took time to arrive; None is now.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def resolve(answer: Answer) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(answer))

        waiting = _Waiting(job, resolve)
        with self._changed:
            if self._closed or len(self._waiting) >= self.settings.queue:
                actual = "the server is stopping" if self._closed else f"{len(self._waiting)} jobs"
                return refusal(BUSY, "queue", f"fewer than {self.settings.queue} jobs", actual, "try again later")
            self._waiting.append(waiting)
            self._changed.notify()
        try:
            async with asyncio.timeout(self.settings.seconds - (time.monotonic() - since if since else 0.0)):
                return await future
        except TimeoutError:
            return self._too_late()
        finally:
            with self._changed, suppress(ValueError):
                self._waiting.remove(waiting)

    def close(self, seconds: float = 30.0) -> bool:
        """Finish the jobs that have arrived, for at most `seconds`, and end the workers; return whether all are."""
        limit = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while (self._waiting or self._busy) and time.monotonic() < limit:
                self._changed.wait(0.05)
            is_done = not (self._waiting or self._busy)
        for thread in self._threads:
            thread.join(max(limit - time.monotonic(), 0.1))
        for process in self._processes.values():
            process.kill()
            process.join()
        return is_done

    def _start_worker(self, number: int) -> Connection:
        context = multiprocessing.get_context("spawn")
        own, others = context.Pipe()
        process = context.Process(target=run_worker, args=(others, self.worker), daemon=True)
        process.start()
        others.close()  # so that the end of the worker ends the pipe
        self._processes[number] = process
        return own

    def _first_message(self, number: int, connection: Connection) -> dict[str, Any]:
        """Return what a worker says of itself once its detector is loaded."""
        if not connection.poll(START_SECONDS):
            raise TimeoutError(f"a worker has not started within {START_SECONDS:g} seconds")
        message = connection.recv()
        if isinstance(message, UserError):
            raise message
        self._ready.add(number)
        return dict(message)

    def _serve(self, number: int, connection: Connection) -> None:
        """Give batches to one worker until the pool is closed."""
        while batch := self._next_batch():
            try:
                for waiting, answer in zip(batch, self._exchange(connection, batch), strict=True):
                    waiting.resolve(answer)
                ended = False
            except (EOFError, OSError) as error:
                self._ready.discard(number)
                self._put_back(batch, error)
                ended = True
            finally:
                with self._changed:
                    self._busy -= len(batch)
                    self._changed.notify_all()
            if ended:
                connection.close()
                restarted = self._restart(number)
                if restarted is None:
                    return
                connection = restarted
        connection.close()

    def _next_batch(self) -> list[_Waiting]:
        """Wait for jobs, and return a batch; empty when the pool is closed and nothing waits."""
        with self._changed:
            while True:
                if self._waiting:
                    break
                if self._closed:
                    return []
                self._changed.wait(0.5)
            # A job whose worker has ended is tried alone, so that it cannot take others with it.
            size = 1 if self._waiting[0].attempts else self.settings.batch
            if len(self._waiting) < size:
                self._changed.wait_for(lambda: len(self._waiting) >= size, self.settings.batch_seconds)
            batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            self._busy += len(batch)
            if batch:
                self.state.batches[len(batch)] += 1
        return batch or self._next_batch()

    def _too_late(self) -> Answer:
        expected = f"an answer within {self.settings.seconds:g} seconds"
        return refusal(BUSY, "time", expected, "none", "send a smaller image, or try again later")

    def _exchange(self, connection: Connection, batch: list[_Waiting]) -> list[Answer]:
        """Return the answers of a worker; raises `OSError` when it ended or takes too long."""
        connection.send([waiting.job for waiting in batch])
        if not connection.poll(self.settings.seconds):
            raise TimeoutError("a worker took too long")
        answers: list[Answer] = connection.recv()
        return answers

    def _put_back(self, batch: list[_Waiting], error: Exception) -> None:
        """Let another worker try the jobs of one that ended, except those that are late or have ended several."""
        logger.error("A worker ended during %d jobs: %s", len(batch), error or type(error).__name__)
        with self._changed:
            for waiting in reversed(batch):
                waiting.attempts += 1
                if isinstance(error, TimeoutError):
                    waiting.resolve(self._too_late())
                elif waiting.attempts >= MAX_ATTEMPTS:
                    fix = "send another image, or tell the operator"
                    waiting.resolve(refusal(FAILED, "server", "a result", f"{MAX_ATTEMPTS} workers ended", fix))
                else:
                    self._waiting.appendleft(waiting)

    def _restart(self, number: int) -> Connection | None:
        """Return the connection to a new worker; None if the pool is closed before one has started."""
        while not self._closed:
            connection = None
            try:
                self._processes[number].kill()
                self._processes[number].join()
                self.state.restarts += 1
                connection = self._start_worker(number)
                self._first_message(number, connection)
                return connection
            except (EOFError, OSError, UserError) as error:
                logger.error("A worker cannot start: %s", error)
                if connection is not None:
                    connection.close()
                time.sleep(RESTART_SECONDS)
        return None
