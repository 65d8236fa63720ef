"""The page itself: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from regionclip.evaluation.ground_truth import GroundTruth
from regionclip.evaluation.page.calibration import (
    UNCALIBRATED,
    CalibrationReport,
    PlattParameters,
    best_threshold,
    report_calibration,
)
from regionclip.evaluation.page.charts import calibration_chart, mean_curve, precision_recall_chart, training_chart
from regionclip.evaluation.page.crops import crop_of
from regionclip.evaluation.page.matching import ClassMatches, Floats, match_classes
from regionclip.evaluation.page.mistakes import WORST, Mistake, confusions, wrong_detections
from regionclip.evaluation.page.precision import (
    Interval,
    average_precisions,
    bootstrap_weights,
    interval,
    mean_over_classes,
    precision_curve,
)
from regionclip.evaluation.predictions import Results
from regionclip.files import atomic_write, write_json
from regionclip.records import Record

CURVES = 12
"""Classes whose precision-recall curves are shown: those with the most objects."""

CALIBRATION = "calibration.json"

MIN_SHOWN = 0.05
"""Score below which no user sees a detection; calibration leaves these out."""

CONFUSED_AMONG = 5000
"""Wrong detections in which pairs of confused classes are counted."""

SIZES = {"APs": "small, below 32² pixels", "APm": "medium", "APl": "large, from 96² pixels"}


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of boxes."""

    dataset: str
    protocol: str
    metrics: Mapping[str, float]
    """In percent, of the official implementation."""
    class_names: Sequence[str]
    class_groups: Mapping[str, Sequence[str]]
    """Names of the novel and the base classes; empty without such groups."""
    records: Sequence[Record]
    """Of the images, by the order of their ids."""
    truth: GroundTruth
    results: Results
    is_federated: bool
    """By LVIS's rules."""
    shown: Callable[[Floats], Floats]
    """From a detector's scores to those in [0, 1] that users see."""
    platt: PlattParameters = UNCALIBRATED
    """Those in `shown`."""
    weights: str = ""
    """Hash of the evaluated backbone; empty if unknown."""
    training_log: Path | None = None
    """`metrics.json` of the training whose weights these are."""


def write_page(path: Path, evaluated: Evaluated) -> Path:
    """Write the page, and next to it `calibration.json`; return the path of the page."""
    matches = match_classes(evaluated.truth, evaluated.results, is_federated=evaluated.is_federated)
    shown = [evaluated.shown(entry.scores) for entry in matches]
    report = report_calibration(matches, shown, MIN_SHOWN, evaluated.platt)
    objects = sum(int(entry.objects.sum()) for entry in matches)
    detections = sum(len(entry.scores) for entry in matches)
    sections = [
        *_metrics(evaluated, matches),
        *_curves(evaluated, matches),
        *_calibration(report),
        *_mistakes(evaluated, matches, shown),
        *_training(evaluated.training_log),
    ]
    template = Template(files("regionclip.evaluation.page").joinpath("page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        dataset=html.escape(evaluated.dataset),
        protocol=html.escape(evaluated.protocol),
        counts=f"{len(evaluated.records)} images, {objects} objects, {detections} detections.",
        sections="\n".join(sections),
    )
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))
    write_json(path.with_name(CALIBRATION), {**report.as_dict(), "weights": evaluated.weights})
    return path


def _metrics(evaluated: Evaluated, matches: Sequence[ClassMatches]) -> Iterator[str]:
    """Yield the tables of average precision: of all, of groups, by size, and of each class."""
    weights = bootstrap_weights(matches)
    samples = np.stack([average_precisions(entry, weights) for entry in matches])  # [K, B, 2]
    names = list(evaluated.class_names)
    groups = {"all": range(len(names))} | {
        group: [names.index(name) for name in members] for group, members in evaluated.class_groups.items()
    }
    rows = [
        [group, str(len(members)), *_intervals(mean_over_classes(samples[list(members)].reshape(len(members), -1)))]
        for group, members in groups.items()
    ]
    note = (
        f"In parentheses: 95 % confidence interval of {len(weights) - 1} bootstrap samples of the images, as if other "
        "images of the same kind had been drawn. The spread of trainings is not in it."
    )
    yield f"<h2>Average precision</h2><p>{note}</p>" + _table(["classes", "number", "AP", "AP50"], rows)
    sizes = [[meaning, _number(evaluated.metrics[key])] for key, meaning in SIZES.items() if key in evaluated.metrics]
    yield "<h3>By size of the objects</h3>" + _table(["objects", "AP"], sizes)
    group_of = {name: group for group, members in evaluated.class_groups.items() for name in members}
    order = sorted(range(len(names)), key=lambda k: -np.nan_to_num(samples[k, 0, 1], nan=-1))
    own = [
        [names[k], group_of.get(names[k], ""), str(int(matches[k].objects.sum())), *_intervals(samples[k].reshape(-1))]
        for k in order
    ]
    yield "<h3>By class</h3>" + _table(["class", "group", "objects", "AP", "AP50"], own)


def _intervals(samples: Floats) -> list[str]:
    """Return AP and AP50 with their intervals, of samples [B * 2]."""
    table = samples.reshape(-1, 2)
    return [_with_interval(interval(table[:, column])) for column in (0, 1)]


def _with_interval(metric: Interval) -> str:
    if not math.isfinite(metric.value):
        return "n/a"
    return f"{metric.value:.1f} <small>({_number(metric.low)} to {_number(metric.high)})</small>"


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "n/a"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first cell of a row is text, the others are HTML."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = [
        f"<tr><td>{html.escape(first)}</td>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows
    ]
    return f'<div class="scroll"><table><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>'


def _curves(evaluated: Evaluated, matches: Sequence[ClassMatches]) -> Iterator[str]:
    curves = [
        precision_curve(entry.is_right[0], entry.ignored[0], np.ones(len(entry.scores)), float(entry.objects.sum()))
        for entry in matches
    ]
    most = sorted(range(len(matches)), key=lambda k: -int(matches[k].objects.sum()))[:CURVES]
    chosen = {"mean of all classes": mean_curve(curves)}
    chosen |= {evaluated.class_names[k]: curves[k] for k in most if np.isfinite(curves[k]).all()}
    note = f" The {CURVES} classes with the most objects." if len(matches) > CURVES else ""
    chart = precision_recall_chart(chosen)
    yield f'<h2>Precision and recall</h2><p>At an IoU of 0.5.{note}</p><div class="charts">{chart}</div>'


def _calibration(report: CalibrationReport) -> Iterator[str]:
    if not report.count:
        return
    advice = (
        f"With MODEL.CLIP.SCORE_TEMPERATURE {report.best.temperature:.2f} and SCORE_BIAS {report.best.bias:.2f} it is "
        f"{100 * report.fitted.error:.1f}, with a further temperature of "
        f"{report.single_temperature:.2f} alone {100 * report.tempered.error:.1f}. "
        if np.isfinite(report.best.temperature)
        else ""
    )
    text = (
        f"Expected calibration error {100 * report.measured.error:.1f} percent points, of {report.count} detections "
        f"with a score of at least {MIN_SHOWN}; temperature {report.platt.temperature:g}, bias {report.platt.bias:g}. "
        f"{advice}"
        "A detection is right if it matches an object with an IoU of at least 0.5. The highest F1, "
        f"{_number(report.f1)} %, is at a score of {report.threshold:.2f}."
    )
    yield f'<h2>Calibration</h2><p>{text}</p><div class="charts">{calibration_chart(report.measured)}</div>'


def _mistakes(evaluated: Evaluated, matches: Sequence[ClassMatches], shown: Sequence[Floats]) -> Iterator[str]:
    objects: list[list[dict[str, object]]] = [[] for _ in evaluated.records]
    for annotation in evaluated.truth.content["annotations"]:
        objects[annotation["image_id"] - 1].append(annotation)
    wrong = wrong_detections(matches, shown, objects, CONFUSED_AMONG)
    worst = [_figure(evaluated, mistake) for mistake in wrong[:WORST]]
    yield (
        "<h2>Worst mistakes</h2><p>The wrong detections with the highest scores "
        '(<span class="wrong">detection</span>, <span class="actual">object</span>).</p>'
        f'<div class="crops">{"".join(worst) or "None."}</div>'
    )
    # Every region has a score for every class: only those that a user would see are confusions.
    threshold, _ = best_threshold(matches, shown)
    pairs = confusions([mistake for mistake in wrong if mistake.score >= threshold]).most_common(WORST)
    first = {(mistake.detected, mistake.actual): mistake for mistake in reversed(wrong)}
    confused = [_figure(evaluated, first[pair], f"{count} times") for pair, count in pairs]
    if confused:
        note = f"Detections on an object of another class, with a score of at least {threshold:.2f}."
        yield f'<h2>Confused classes</h2><p>{note}</p><div class="crops">{"".join(confused)}</div>'


def _figure(evaluated: Evaluated, mistake: Mistake, note: str = "") -> str:
    names, record = evaluated.class_names, evaluated.records[mistake.image]
    crop = crop_of(record, mistake)
    on = f" on {names[mistake.actual]}" if mistake.reason == "another class" and mistake.actual is not None else ""
    text = f"{names[mistake.detected]}{on or f', {mistake.reason}'}: {mistake.score:.2f}"
    name = Path(record.get("file_name", str(record["image_id"]))).name
    image = f'<img alt="" src="{crop}">' if crop else ""
    lines = "<br>".join(html.escape(line) for line in (text, note, name) if line)
    return f"<figure>{image}<figcaption>{lines}</figcaption></figure>"


def _training(log: Path | None) -> Iterator[str]:
    charts = [training_chart(log, name) for name in ("total_loss", "bbox/AP50", "lr")] if log else []
    if any(charts):
        yield f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>'
