"""Average precision of images that count several times, and its confidence intervals by bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionclip.evaluation.page.matching import THRESHOLDS, ClassMatches, Flags, Floats

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

RESAMPLES = 200
"""Bootstrap samples of the images."""

_WORK = 4e9
"""Detections times thresholds times samples that a page may cost; more takes fewer samples, and at least `_MIN`."""

_MIN = 40

_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A metric in percent with its 95 % confidence interval; NaN where nothing defines it."""

    value: float
    low: float
    high: float


def precision_curve(right: Flags, ignored: Flags, weights: Floats, objects: float) -> Floats:
    """Return the interpolated precision [101] at `RECALLS`; NaN without objects.

    Args:
        right: [D], which detections match an object, by descending score.
        ignored: [D], which count neither way.
        weights: [D], how often the image of each counts.
        objects: number of objects, with the same weights.
    """
    if not objects:
        return np.full(len(RECALLS), np.nan)
    hits = np.cumsum(weights * (right & ~ignored))
    misses = np.cumsum(weights * (~right & ~ignored))
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return np.append(precision, 0.0)[places]


def average_precisions(matches: ClassMatches, image_weights: Floats) -> Floats:
    """Return [B, 2], AP and AP50 in percent of a class, for weights [B, I] of the images; NaN without objects."""
    right, values = matches.is_right, np.empty((len(image_weights), len(THRESHOLDS)))
    for number, of_images in enumerate(
        image_weights
    ):  # one sample at a time: [B, D] of a large dataset takes gigabytes
        weights, objects = of_images[matches.images], float(of_images @ matches.objects)
        for t in range(len(THRESHOLDS)):
            values[number, t] = precision_curve(right[t], matches.ignored[t], weights, objects).mean()
    return 100 * np.stack([values.mean(axis=1), values[:, 0]], axis=1)


def bootstrap_weights(matches: Sequence[ClassMatches]) -> Floats:
    """Return [B, I]: how often each image counts, in the first row once, in others as drawn with replacement."""
    images = len(matches[0].objects)
    detections = sum(len(entry.scores) for entry in matches)
    samples = int(np.clip(_WORK / max(detections * len(THRESHOLDS), 1), _MIN, RESAMPLES))
    drawn = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), samples)
    return np.concatenate([np.ones((1, images)), drawn])


def interval(samples: Floats) -> Interval:
    """Return the interval of a metric [B], whose first value is that of the images as they are."""
    known = samples[1:][np.isfinite(samples[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if known.size else (np.nan, np.nan)
    return Interval(float(samples[0]), float(low), float(high))


def mean_over_classes(samples: Floats) -> Floats:
    """Return [B] of samples [K, B]: the mean over the classes that have objects in a sample, NaN if none has."""
    known = np.isfinite(samples)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, samples, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
