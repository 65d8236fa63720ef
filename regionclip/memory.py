"""Memory on a CPU: what was freed is used again, instead of given back to the system and asked for anew."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD = 1 << 30
"""Free bytes at the end of glibc's heap above which it may give them back to the system."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory of feature maps that are no longer needed, for the next ones.

    glibc gives blocks above 32 MB back at once, and a feature map of an image of 800 pixels has up to 57: to touch
    fresh pages takes as long as some convolutions. Holds for the whole process, from then on: it keeps what it needed
    at its peak. glibc trims only the end of its heap, so `TRIM_THRESHOLD` is no upper limit. A user's own settings
    (MALLOC_..., GLIBC_TUNABLES) are left as they are.

    Returns:
        Whether it does: not with other allocators or systems.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if chosen or sys.platform != "linux":
        return False
    configure = getattr(ctypes.CDLL(None), "mallopt", None)
    return configure is not None and all(
        configure(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, TRIM_THRESHOLD))
    )
