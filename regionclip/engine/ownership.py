"""Locking of output folders: at most one live process and one unfinished run per folder."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from detectron2.utils import comm
from filelock import FileLock, Timeout

from regionclip.addresses import masked
from regionclip.errors import UserError, user_error
from regionclip.files import make_folder

logger = logging.getLogger(__name__)

LOCK_FILE = ".regionclip.lock"
"""Lock file in an output folder in use; the lock is released when the process ends, however it ends."""

Result = TypeVar("Result")


@contextmanager
def own_folder(folder: Path, what: str) -> Iterator[None]:
    """Lock an output folder, created if missing, for a block that all processes of a run enter.

    A folder that was created and is still empty at the end is removed.

    Args:
        folder: gets the results.
        what: its name in messages: the option or config key.

    Raises:
        UserError: another process uses it, or it cannot be written to.
    """
    owner = on_main_process(lambda: _Owner(folder, what))
    try:
        yield
    finally:
        if owner is not None:
            owner.leave()


def on_main_process(action: Callable[[], Result]) -> Result | None:
    """Return what `action` returns on the main process, None on others; its `UserError` ends all processes."""
    result, problems = None, None
    if comm.is_main_process():
        try:
            result = action()
        except UserError as error:
            problems = error.problems
    everywhere = comm.all_gather(problems)
    if problems is not None:
        raise UserError(problems)
    if any(everywhere):
        sys.exit(2)  # the main process reports the reason
    return result


class _Owner:
    def __init__(self, folder: Path, what: str) -> None:
        self._made = make_folder(folder, what)
        self._file = folder / LOCK_FILE
        self._lock: FileLock | None = FileLock(self._file, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            fix = "wait until it has ended, or name another folder"
            raise user_error(what, "a folder that no other run uses", f"that of {_holder(self._file)}", fix) from error
        except (OSError, NotImplementedError) as error:
            logger.warning("%s: cannot be locked (%s): see to it that no other run writes to it", folder, error)
            self._lock = None
            return
        command = masked(" ".join(sys.argv))[:200]
        about = {"process": os.getpid(), "host": socket.gethostname(), "command": command}
        with suppress(OSError):  # a full disk is reported when results are written
            self._file.write_text(json.dumps(about))

    def leave(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)  # while locked: a waiting process then opens a new file
            self._lock.release()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def _holder(file: Path) -> str:
    try:
        about = json.loads(file.read_text())
        return f"process {about['process']} on {about['host']} ({about['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
