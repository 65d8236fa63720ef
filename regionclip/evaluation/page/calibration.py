"""Calibration: how often detections of a score are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from regionclip.evaluation.page.matching import ClassMatches, Flags, Floats

BINS = 10

MAX_BIAS = 20.0
"""Of a fit, either way."""


@dataclass(frozen=True)
class Calibration:
    """Detections in bins of equal width of their score in [0, 1]."""

    scores: Floats
    """[10], mean score; NaN in an empty bin."""
    right: Floats
    """[10], share that matches an object with an IoU of at least 0.5."""
    counts: Floats
    """[10]."""

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., 2017): mean distance of score and share; NaN without detections."""
        kept = self.counts > 0
        weights = self.counts[kept] / max(self.counts.sum(), 1)
        return float((weights * np.abs(self.scores[kept] - self.right[kept])).sum()) if kept.any() else float("nan")


@dataclass(frozen=True)
class PlattParameters:
    """Temperature that divides the log odds of scores, and bias that is added to them after that (Platt, 1999)."""

    temperature: float = 1.0
    bias: float = 0.0

    def then(self, following: PlattParameters) -> PlattParameters:
        """Return the parameters of both, one after the other."""
        bias = self.bias / following.temperature + following.bias
        return PlattParameters(self.temperature * following.temperature, bias)


UNCALIBRATED = PlattParameters()

UNKNOWN = PlattParameters(float("nan"), float("nan"))


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of an evaluation, and what Platt scaling and a threshold would make of it."""

    measured: Calibration
    platt: PlattParameters
    """SCORE_TEMPERATURE and SCORE_BIAS of the measured scores."""
    fitted: Calibration
    """With the best parameters."""
    best: PlattParameters
    """NaN where all detections are right, or none is."""
    tempered: Calibration
    """With a further temperature and no further bias."""
    single_temperature: float
    """That further temperature."""
    threshold: float
    """With the highest F1, on the measured scale."""
    f1: float
    """In percent."""

    @property
    def count(self) -> int:
        """Number of detections that count."""
        return int(self.measured.counts.sum())

    def as_dict(self) -> dict[str, float]:
        """Return the values for a JSON file: errors in percent points, without those that are unknown."""
        values = {
            "detections": self.count,
            "temperature": self.platt.temperature,
            "bias": self.platt.bias,
            "expected_calibration_error": 100 * self.measured.error,
            "single_temperature": self.single_temperature,
            "expected_calibration_error_with_single_temperature": 100 * self.tempered.error,
            "best_temperature": self.best.temperature,
            "best_bias": self.best.bias,
            "expected_calibration_error_with_both": 100 * self.fitted.error,
            "threshold_of_highest_f1": self.threshold,
            "highest_f1": self.f1,
        }
        return {name: value for name, value in values.items() if np.isfinite(value)}


def report_calibration(
    matches: Sequence[ClassMatches], shown: Sequence[Floats], min_score: float, platt: PlattParameters
) -> CalibrationReport:
    """Measure the calibration of the detections of all classes, and fit temperature, bias and threshold.

    Args:
        matches: of each class.
        shown: [D] scores of each class in [0, 1].
        min_score: detections with a lower one do not count.
        platt: parameters of these scores.
    """
    threshold, f1 = best_threshold(matches, shown)
    alone, tempered = fit_platt(matches, shown, min_score, with_bias=False)
    further, fitted = fit_platt(matches, shown, min_score)
    return CalibrationReport(
        measured=calibration(matches, shown, min_score),
        platt=platt,
        fitted=fitted,
        best=platt.then(further),
        tempered=tempered,
        single_temperature=alone.temperature,
        threshold=threshold,
        f1=f1,
    )


def calibration(matches: Sequence[ClassMatches], shown: Sequence[Floats], min_score: float) -> Calibration:
    """Return the calibration of the detections of all classes.

    Args:
        matches: of each class.
        shown: [D] scores of each class in [0, 1].
        min_score: detections with a lower one do not count.
    """
    return _in_bins(*_pooled(matches, shown, min_score))


def fit_platt(
    matches: Sequence[ClassMatches], shown: Sequence[Floats], min_score: float, *, with_bias: bool = True
) -> tuple[PlattParameters, Calibration]:
    """Return temperature and bias of log odds with the highest likelihood (Platt, 1999), and the calibration with them.

    Args:
        matches: of each class.
        shown: [D] scores of each class in [0, 1].
        min_score: detections with a lower one do not count.
        with_bias: False fits the temperature alone (Guo et al., 2017).

    Returns:
        NaN as parameters, if all counted detections are right, or none is.
    """
    scores, right = _pooled(matches, shown, min_score)
    if right.all() or not right.any():
        return UNKNOWN, _in_bins(scores, right)
    log_odds = logit(np.clip(scores, 1e-6, 1 - 1e-6))
    signs = np.where(right, 1.0, -1.0)

    def loss(parameters: Floats) -> float:
        return float(np.logaddexp(0, -signs * (log_odds / np.exp(parameters[0]) + parameters[1])).mean())

    bias_limit = MAX_BIAS if with_bias else 0.0
    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-4.0, 4.0), (-bias_limit, bias_limit)]).x
    temperature, bias = float(np.exp(found[0])), float(found[1])
    return PlattParameters(temperature, bias), _in_bins(expit(log_odds / temperature + bias), right)


def _pooled(matches: Sequence[ClassMatches], shown: Sequence[Floats], min_score: float) -> tuple[Floats, Flags]:
    """Return scores [N] and whether they are right [N] of the detections that count."""
    scores = np.concatenate([values[~entry.ignored[0]] for entry, values in zip(matches, shown, strict=True)])
    right = np.concatenate([entry.is_right[0][~entry.ignored[0]] for entry in matches])
    kept = scores >= min_score
    return scores[kept], right[kept]


def _in_bins(scores: Floats, right: Flags) -> Calibration:
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(float)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, scores, BINS) / counts
        shares = np.bincount(bins, right, BINS) / counts
    return Calibration(means, shares, counts)


def best_threshold(matches: Sequence[ClassMatches], shown: Sequence[Floats]) -> tuple[float, float]:
    """Return the threshold with the highest F1 of all classes together, and that F1 in percent; NaN without detections.

    It lies half way between two scores, so that a comparison by > and one by >= keep the same detections.
    """
    kept = [~entry.ignored[0] for entry in matches]
    scores = np.concatenate([values[which] for values, which in zip(shown, kept, strict=True)])
    right = np.concatenate([entry.is_right[0][which] for entry, which in zip(matches, kept, strict=True)])
    objects = sum(int(entry.objects.sum()) for entry in matches)
    if not len(scores) or not objects:
        return float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    following = np.append(scores[order][1:], 0.0)
    ends = np.flatnonzero(scores[order] > following)  # a threshold keeps all of several equal scores, or none
    if not len(ends):
        return float("nan"), float("nan")
    f1 = 2 * np.cumsum(right[order])[ends] / (ends + 1 + objects)
    best = int(np.argmax(f1))
    return float(scores[order][ends[best]] + following[ends[best]]) / 2, float(100 * f1[best])
