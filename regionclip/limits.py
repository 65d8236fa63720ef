"""Validation of user limits on detections: threshold, topk, words_per_box."""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex, cast

from regionclip.errors import user_error


def whole_number(value: object) -> int | None:
    """Return an integer of any type, including NumPy's and torch's, as `int`; None for anything else."""
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        return None


def require_limits(
    threshold: float | None, topk: int | None, words_per_box: int, words: int, *, with_boxes: bool = False
) -> None:
    """Raise a `UserError` for limits that `predict` cannot apply with `words` classes."""
    if threshold is not None and (isinstance(threshold, str) or not math.isfinite(threshold)):
        actual = repr(threshold) if isinstance(threshold, str) else str(threshold)
        raise user_error("threshold", "a number", actual, "leave it out for the detector's own")
    if topk is not None and with_boxes:
        raise user_error("topk", "none with given boxes, which are all named", str(topk), "use threshold")
    if topk is not None and (whole_number(topk) or 0) < 1:
        actual = repr(topk) if isinstance(topk, str) else str(topk)
        raise user_error("topk", "a whole number above 0", actual, "leave it out for the detector's own limit")
    if not 0 <= (-1 if whole_number(words_per_box) is None else words_per_box) <= words:
        raise user_error("words_per_box", f"0 to {words}, the words", str(words_per_box), "ask for fewer")
