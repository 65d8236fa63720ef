"""Isolation from process-wide torch settings of the user, which are restored afterwards."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


ERROR, WARN = 2, 1
"""Torch's debug modes of deterministic algorithms."""


class _SettingsOfProcess:
    """Settings shared by all threads: own ones while any thread is in a block, else the user's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._dtype, self._determinism = torch.float32, 0
        self._forked = False

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Set float32 as the default dtype; the last thread to leave restores the user's settings."""
        with self._lock:
            if not self._threads:
                self._change()
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._give_back()

    def _change(self) -> None:
        self._dtype, self._determinism = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
        torch.set_default_dtype(torch.float32)
        if self._determinism == ERROR:
            torch.set_deterministic_debug_mode(WARN)  # deterministic where torch supports it
        if self._forked and torch.get_num_threads() > 1:
            # OpenMP's threads do not survive a fork, and would be waited for.
            logger.warning("This process is a fork: it computes with one thread; spawned ones can have more")
            torch.set_num_threads(1)

    def _give_back(self) -> None:
        torch.set_default_dtype(self._dtype)
        torch.set_deterministic_debug_mode(self._determinism)

    def after_fork(self) -> None:
        """Reset the state of threads that a forked process does not have."""
        if self._threads:
            self._give_back()
        self._lock, self._threads, self._forked = threading.Lock(), 0, True


_process = _SettingsOfProcess()
os.register_at_fork(after_in_child=_process.after_fork)


@contextmanager
def own_settings() -> Iterator[None]:
    """Run a block without gradients, and without the user's settings of the process or this thread.

    These are default dtype and device, autocast, inference mode, and errors about nondeterministic operations.
    Afterwards they are restored. Other threads only see the default dtype, and warnings instead of those
    errors, which are process-wide settings. A forked process computes with one thread.
    """
    with ExitStack() as stack:
        stack.enter_context(_process.changed())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


def with_own_settings(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap a function to run in `own_settings`."""

    @functools.wraps(function)
    def isolated(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with own_settings():
            return function(*arguments, **keywords)

    return isolated
