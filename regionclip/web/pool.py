"""Worker processes behind a queue: batches, deadlines, and jobs that outlive their worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from regionclip.errors import UserError
from regionclip.web.jobs import BUSY, FAILED, Answer, Job, WorkerSettings, refusal

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
"""Workers that a job may end; one that ends two is not given to a third."""

RESTART_SECONDS = 1.0
"""Time between two starts of a worker that cannot start."""


@dataclass(frozen=True)
class PoolSettings:
    """Size of a pool, and its limits."""

    workers: int = 1
    batch: int = 1
    """Jobs that a worker gets at once, if so many wait."""
    batch_seconds: float = 0.005
    """Time that the first job of a batch waits for others."""
    queue: int = 64
    """Jobs that may wait."""
    seconds: float = 60.0
    """Time from the arrival of a job to its answer."""


@dataclass
class _Waiting:
    job: Job
    resolve: Callable[[Answer], None]
    deadline: float
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

    def start(self) -> None:
        """Start the workers, and return when all are ready.

        Raises:
            UserError: the detector cannot be loaded.
        """
        connections = [self._start_worker(number) for number in range(self.settings.workers)]
        for number, connection in enumerate(connections):
            self.description = self._first_message(connection)
            thread = threading.Thread(target=self._serve, args=(number, connection), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def queued(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._waiting)

    @property
    def alive(self) -> int:
        """Workers whose process lives."""
        return sum(process.is_alive() for process in self._processes.values())

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes.values() if process.pid is not None]

    async def answer(self, job: Job) -> Answer:
        """Return the answer to a job, or a refusal if too many wait or its time is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def resolve(answer: Answer) -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(answer))

        with self._changed:
            if self._closed or len(self._waiting) >= self.settings.queue:
                actual = "the server is stopping" if self._closed else f"{len(self._waiting)} jobs"
                return refusal(BUSY, "queue", f"fewer than {self.settings.queue} jobs", actual, "try again later")
            self._waiting.append(_Waiting(job, resolve, time.monotonic() + self.settings.seconds))
            self._changed.notify()
        return await future

    def close(self, seconds: float = 30.0) -> None:
        """Finish the jobs that have arrived, for at most `seconds`, and end the workers."""
        limit = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while (self._waiting or self._busy) and time.monotonic() < limit:
                self._changed.wait(0.05)
        for thread in self._threads:
            thread.join(max(limit - time.monotonic(), 0.1))
        for process in self._processes.values():
            process.kill()
            process.join()

    def _start_worker(self, number: int) -> Connection:
        context = multiprocessing.get_context("spawn")
        own, others = context.Pipe()
        process = context.Process(target=run_worker, args=(others, self.worker), daemon=True)
        process.start()
        others.close()  # so that the end of the worker ends the pipe
        self._processes[number] = process
        return own

    @staticmethod
    def _first_message(connection: Connection) -> dict[str, Any]:
        message = connection.recv()
        if isinstance(message, UserError):
            raise message
        return dict(message)

    def _serve(self, number: int, connection: Connection) -> None:
        """Give batches to one worker until the pool is closed."""
        while batch := self._next_batch():
            try:
                answers = self._exchange(connection, batch)
            except (EOFError, OSError) as error:
                self._put_back(batch, error)
                connection.close()
                connection = self._restart(number)
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    waiting.resolve(answer)
            with self._changed:
                self._busy -= len(batch)
                self._changed.notify_all()
        connection.close()

    def _next_batch(self) -> list[_Waiting]:
        """Wait for jobs, and return a batch; empty when the pool is closed and nothing waits."""
        with self._changed:
            while True:
                self._drop_late()
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

    def _drop_late(self) -> None:
        now = time.monotonic()
        late = [waiting for waiting in self._waiting if waiting.deadline < now]
        for waiting in late:
            self._waiting.remove(waiting)
            waiting.resolve(self._too_late())

    def _too_late(self) -> Answer:
        expected = f"an answer within {self.settings.seconds:g} seconds"
        return refusal(BUSY, "time", expected, "none", "send a smaller image, or try again later")

    def _exchange(self, connection: Connection, batch: list[_Waiting]) -> list[Answer]:
        """Return the answers of a worker; raises `OSError` when it ended or takes too long."""
        connection.send([waiting.job for waiting in batch])
        seconds = max(waiting.deadline for waiting in batch) - time.monotonic()
        if not connection.poll(max(seconds, 0.1)):
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

    def _restart(self, number: int) -> Connection:
        while True:
            self._processes[number].kill()
            self._processes[number].join()
            self.state.restarts += 1
            connection = self._start_worker(number)
            try:
                self._first_message(connection)
                return connection
            except (EOFError, OSError, UserError) as error:
                logger.error("A worker cannot start: %s", error)
                connection.close()
                time.sleep(RESTART_SECONDS)
