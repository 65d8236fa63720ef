"""Charts of a page as SVG text, readable on light and dark background."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionclip.evaluation.page.calibration import Calibration
from regionclip.evaluation.page.matching import Floats
from regionclip.evaluation.page.precision import RECALLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRAY = "#808080"

_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))

_SIZE = (5.2, 3.6)
"""Inches of a chart."""


def precision_recall_chart(curves: Mapping[str, Floats]) -> str:
    """Return the precision-recall curves [101] at an IoU of 0.5, by class name."""

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            axes.plot(RECALLS, curve, label=_label(name), linewidth=1.3)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(fontsize=7, frameon=False, labelcolor=_GRAY, loc="center left", bbox_to_anchor=(1, 0.5))

    return _svg(draw)


def calibration_chart(calibration: Calibration) -> str:
    """Return the share of right detections by their score."""

    def draw(axes: Axes) -> None:
        kept = calibration.counts > 0
        axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle="--")
        sizes = 15 + 60 * calibration.counts[kept] / max(float(np.max(calibration.counts)), 1.0)
        axes.plot(calibration.scores[kept], calibration.right[kept], linewidth=1.3)
        axes.scatter(calibration.scores[kept], calibration.right[kept], s=sizes)
        axes.set(xlabel="score", ylabel="share of right detections", xlim=(0, 1), ylim=(0, 1.02))

    return _svg(draw)


def training_chart(log: Path, name: str) -> str:
    """Return a metric over the iterations of a training log, one JSON object a line; empty without two values."""
    points = [(entry["iteration"], entry[name]) for entry in _lines(log) if name in entry and "iteration" in entry]
    kept = [(iteration, value) for iteration, value in points if math.isfinite(value)]
    if len(kept) < 2:
        return ""

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*kept, strict=True), linewidth=1.3, marker="o" if len(kept) < 30 else "", markersize=3)
        axes.set(xlabel="iteration", ylabel=name)

    return _svg(draw)


def _lines(log: Path) -> list[dict[str, Any]]:
    entries = []
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line of a run that writes at this moment
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _label(name: str) -> str:
    # Matplotlib takes text between dollars for formulas, and leaves out labels that begin with an underscore.
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$").lstrip("_") or " "


def _svg(draw: Any) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text, in the font of the page; ids do not change from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "regionclip", "font.family": "sans-serif"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.tick_params(colors=_GRAY, labelsize=8)
        axes.xaxis.label.set_color(_GRAY)
        axes.yaxis.label.set_color(_GRAY)
        for spine in axes.spines.values():
            spine.set_color(_GRAY)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    return file.getvalue().partition("<svg")[2].join(("<svg", ""))


def mean_curve(curves: Sequence[Floats]) -> Floats:
    """Return the mean [101] of the curves of classes with objects."""
    known = [curve for curve in curves if np.isfinite(curve).all()]
    return np.mean(known, axis=0) if known else np.full(len(RECALLS), np.nan)
