"""Scores of LP-OVOD: prototypes and CLIP's softmax, weighted by their exponents (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreWeights:
    """How class probabilities of both heads are fused."""

    alpha: float
    """Exponent of CLIP's probability for base classes; that of the prototype's is 1 - alpha."""
    beta: float
    """Exponent of the prototype's probability for novel classes; that of CLIP's is 1 - beta."""
    temperature: float
    """Divides the cosines of regions and class names."""
    novel_temperature: float = 1.0
    """Divides the logits of novel prototypes."""


def fuse_probabilities(
    logits: Tensor, clip: Tensor, novel: Tensor, has_prototype: Tensor, weights: ScoreWeights
) -> Tensor:
    """Return the fused probabilities [R, K].

    Args:
        logits: float [R, K], of the prototypes.
        clip: float [R, K], CLIP's softmax.
        novel: bool [K].
        has_prototype: bool [K]; the probability of other classes by prototype is 1, as before linear probing.
        weights: exponents and temperatures.
    """
    scale = torch.where(novel, 1 / weights.novel_temperature, 1.0)
    own = torch.where(has_prototype, (logits * scale).sigmoid(), 1.0)
    exponents = torch.where(novel, weights.beta, 1 - weights.alpha)
    return own**exponents * clip ** (1 - exponents)
