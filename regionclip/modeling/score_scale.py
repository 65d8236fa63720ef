"""Scores as users see them: in [0, 1], and in the same order as the detector's own."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor


class ScoreScale(Protocol):
    """An increasing function from a detector's scores to [0, 1]."""

    def shown(self, scores: Tensor) -> Tensor:
        """Return scores as users see them."""
        ...

    def own(self, shown: float) -> float:
        """Return the detector's own score for one that a user gives."""
        ...


class SameScores:
    """Scores that are in [0, 1] already."""

    def shown(self, scores: Tensor) -> Tensor:
        """Return the scores."""
        return scores

    def own(self, shown: float) -> float:
        """Return the score."""
        return shown


class OddsOfSquare:
    """s^2 / (1 + s^2): with the published score s = sqrt(p * logit), the product p * logit is read as odds.

    The order stays, and with it the detections and their average precision.
    """

    def shown(self, scores: Tensor) -> Tensor:
        """Return the shares of the odds."""
        odds = scores.double() ** 2
        return (odds / (1 + odds)).to(scores.dtype)

    def own(self, shown: float) -> float:
        """Return the published score; infinity for 1."""
        if shown <= 0:
            return shown
        return math.sqrt(shown / (1 - shown)) if shown < 1 else math.inf
