"""Metrics of the server in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from regionclip.web.pool import WorkerPool

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
KNOWN_PATHS = frozenset({"/detect", "/embed", "/health", "/metrics"})
"""Paths that are counted by name; whatever else clients try is one."""


class ServerMetrics:
    """Counters of one server."""

    def __init__(self, pool: WorkerPool) -> None:
        """Count the requests of a server and the batches of its pool."""
        self.registry, self._pool = CollectorRegistry(), pool
        registry = self.registry
        self.requests = Counter(
            "regionclip_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "regionclip_request_seconds",
            "Time from the whole request to its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Gauge("regionclip_batches", "Batches by their number of jobs.", ("jobs",), registry=registry)
        self._queue = Gauge("regionclip_queue_jobs", "Jobs that wait for a worker.", registry=registry)
        self._workers = Gauge("regionclip_workers", "Workers whose process lives.", registry=registry)
        self._restarts = Gauge("regionclip_worker_restarts", "Workers that had to be replaced.", registry=registry)

    def count(self, path: str, status: int, seconds: float | None = None) -> None:
        """Count a request; `seconds` from its body to its answer, None for one that was refused before."""
        name = path if path in KNOWN_PATHS else "other"
        self.requests.labels(name, str(status)).inc()
        if seconds is not None:
            self.seconds.labels(name).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics as text."""
        for size, count in list(self._pool.state.batches.items()):
            self._batches.labels(str(size)).set(count)
        self._queue.set(self._pool.queued)
        self._workers.set(self._pool.alive)
        self._restarts.set(self._pool.state.restarts)
        return generate_latest(self.registry)
