"""Worker processes without a detector, for the tests of the pool."""

import os
import signal
import time
from pathlib import Path

from regionclip.web.jobs import Answer


def run_stand_in(connection, settings):
    """Answer with what each job says: b"die" kills the worker, b"die once:PATH" only if PATH is new, b"sleep" waits."""
    connection.send({"model": settings.model})
    while True:
        try:
            jobs = connection.recv()
        except (EOFError, OSError):
            return
        for job in jobs:
            command, _, path = job.image.decode().partition(":")
            is_first = bool(path) and not Path(path).exists()
            if is_first:
                Path(path).touch()
            if command == "die" or (command == "die once" and is_first):
                os.kill(os.getpid(), signal.SIGKILL)
            if command == "sleep":
                time.sleep(0.4)
        connection.send([Answer({"image": job.image.decode(), "pid": os.getpid(), "batch": len(jobs)}) for job in jobs])
