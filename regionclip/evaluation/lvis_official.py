"""LVIS's official evaluation, which needs minutes and gigabytes: the reference for the fast one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lvis
import numpy as np

from regionclip.evaluation.predictions import Results

FREQUENCIES = ("r", "c", "f")


class _OwnEvaluation(lvis.LVISEval):
    """LVIS's official evaluation, also for classes of unknown frequency, which are in no frequency group."""

    def _prepare_freq_group(self) -> list[list[int]]:
        known = [category["frequency"] for category in self.lvis_gt.load_cats(self.params.cat_ids)]
        return [[i for i, name in enumerate(known) if name == label] for label in FREQUENCIES]


class _Truth(lvis.LVIS):
    """LVIS's index of a ground truth in memory."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.logger = logging.getLogger(lvis.__name__)
        self.dataset = content
        self._create_index()


def evaluate(content: dict[str, Any], results: Results, task: str, max_detections: int) -> dict[str, float]:
    """Return all metrics of the `lvis` package.

    Args:
        content: ground truth, as in an LVIS file.
        results: with boxes or masks, depending on the task.
        task: bbox or segm.
        max_detections: per image, over all classes.
    """
    truth = _Truth(content)
    evaluation = _OwnEvaluation(truth, lvis.LVISResults(truth, results, max_dets=max_detections), task)
    with _numpy_float_alias():
        evaluation.run()
    return evaluation.get_results()


@contextmanager
def _numpy_float_alias() -> Iterator[None]:
    """Restore NumPy's alias `float`, which lvis 0.5.3 still uses and NumPy 1.24 removed."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]
