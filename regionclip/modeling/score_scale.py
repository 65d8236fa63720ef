"""Scores as users see them: in [0, 1], calibrated, and in the same order as the detector's own."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from detectron2.config import CfgNode
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


class PlattScaling:
    """Divides the log odds of scores by a temperature, and adds a bias (Platt, 1999).

    A temperature above 1 brings scores closer to that of log odds equal to the bias; without a bias it is temperature
    scaling (Guo et al., 2017).
    """

    def __init__(self, scale: ScoreScale, temperature: float, bias: float = 0.0) -> None:
        """Create a scale on top of another, whose scores are in [0, 1]."""
        self.scale, self.temperature, self.bias = scale, temperature, bias

    def shown(self, scores: Tensor) -> Tensor:
        """Return the calibrated scores."""
        log_odds = self.scale.shown(scores).double().logit()
        return torch.sigmoid(log_odds / self.temperature + self.bias).to(scores.dtype)

    def own(self, shown: float) -> float:
        """Return the detector's own score."""
        if not 0 < shown < 1:
            return self.scale.own(shown)
        log_odds = self.temperature * (math.log(shown) - math.log1p(-shown) - self.bias)
        return self.scale.own(1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0)


def shown_scale(cfg: CfgNode, scale: ScoreScale) -> ScoreScale:
    """Return the scale of users for a detector's own: its scores as they are, or in [0, 1] and calibrated.

    Keys: SHOWN_SCORES, SCORE_TEMPERATURE, SCORE_BIAS.
    """
    if cfg.MODEL.CLIP.SHOWN_SCORES == "published":
        return SameScores()
    return calibrated(scale, cfg.MODEL.CLIP.SCORE_TEMPERATURE, cfg.MODEL.CLIP.SCORE_BIAS)


def calibrated(scale: ScoreScale, temperature: float, bias: float) -> ScoreScale:
    """Return a scale to [0, 1] with a temperature and a bias."""
    return scale if (temperature, bias) == (1, 0) else PlattScaling(scale, temperature, bias)
