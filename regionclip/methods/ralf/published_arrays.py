"""Published files that `torch.save` wrote with NumPy arrays, read without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from regionclip.errors import user_error

_DTYPES = ("float16", "float32", "float64", "int64", "int32")


def load_arrays(path: Path, expected: str) -> Any:
    """Return the content of a file: tensors, arrays, and containers of them.

    Args:
        path: file.
        expected: what it should be, for messages.

    Raises:
        UserError: missing or unreadable file, or one that could run code.
    """
    if not path.is_file():
        raise user_error(str(path), expected, "no such file", "correct the path")
    # NumPy 1 and 2 have the same function under two names.
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    names = [(rebuild, f"numpy.{module}.multiarray._reconstruct") for module in ("core", "_core")]
    dtypes = [type(np.dtype(kind)) for kind in _DTYPES]
    try:
        with torch.serialization.safe_globals([*names, np.ndarray, np.dtype, *dtypes]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        raise user_error(str(path), expected, f"unreadable ({reason})", "download it again") from error
