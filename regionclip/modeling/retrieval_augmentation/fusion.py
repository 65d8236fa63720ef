"""Fusion of class probabilities and the cosines of augmented embeddings with class names (RALF, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def keep_largest(cosines: Tensor, count: int) -> Tensor:
    """Return cosines [R, K + 1] with the `count` largest of each region, and 0 in place of the others."""
    values, columns = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return torch.zeros_like(cosines).scatter(1, columns, values)


class CosineFusion(Protocol):
    """Fuses probabilities with the cosines that `keep_largest` kept."""

    def __call__(self, probabilities: Tensor, cosines: Tensor) -> Tensor:
        """Return fused probabilities; all are [R, K + 1], background last."""
        ...


@dataclass(frozen=True)
class ScaleProbabilities:
    """p * (sigmoid(z) - offset), as on DetPro."""

    offset: float = 0.25

    def __call__(self, probabilities: Tensor, cosines: Tensor) -> Tensor:
        """Return fused probabilities, which do not sum to 1."""
        return probabilities * (cosines.sigmoid() - self.offset)


class AddToLogProbabilities:
    """softmax(log p + z), as on OADP."""

    def __call__(self, probabilities: Tensor, cosines: Tensor) -> Tensor:
        """Return fused probabilities."""
        weighted = probabilities * cosines.exp()
        return weighted / weighted.sum(dim=1, keepdim=True)


class AverageProbabilities:
    """(p + sigmoid(z)) / 2: half the published sum on Object-Centric-OVD, so that it is a probability again."""

    def __call__(self, probabilities: Tensor, cosines: Tensor) -> Tensor:
        """Return fused probabilities, which do not sum to 1."""
        return (probabilities + cosines.sigmoid()) / 2


FUSIONS: dict[str, Callable[[float], CosineFusion]] = {
    "scale": ScaleProbabilities,
    "log_add": lambda offset: AddToLogProbabilities(),
    "prob_add": lambda offset: AverageProbabilities(),
}
"""Values of MODEL.RALF.RAF.FUSION, which make a fusion of MODEL.RALF.RAF.OFFSET."""
