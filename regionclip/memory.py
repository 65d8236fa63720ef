"""CPU memory reuse: freed memory is kept instead of being returned to the system and requested again."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD = 1 << 30
"""Free bytes at the end of glibc's heap above which it may return them to the system."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed feature maps, for the next ones.

    glibc immediately returns blocks above 32 MB, and a feature map of an 800-pixel image has up to 57 MB: page faults
    on fresh memory take as long as some convolutions. Applies to the whole process, from then on: it keeps its peak
    memory. glibc trims only the end of its heap, so `TRIM_THRESHOLD` is no upper limit. User settings (MALLOC_...,
    GLIBC_TUNABLES) are not changed.

    Returns:
        Whether it has an effect: not with other allocators or systems.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if chosen or sys.platform != "linux":
        return False
    configure = getattr(ctypes.CDLL(None), "mallopt", None)
    return configure is not None and all(
        configure(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, TRIM_THRESHOLD))
    )
