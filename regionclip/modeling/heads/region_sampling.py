"""Sampling of the regions of an image that a head is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RegionSampler:
    """Random positive regions, and negative ones for the rest."""

    count: int
    """Regions of an image."""
    positive_fraction: float
    """Highest fraction of positive ones."""
    negatives_per_positive: float | None = None
    """Limit of negative regions for each positive one, counted as at least one; None has no limit."""

    def __call__(self, positive: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the sampled rows, int64 [S], the positive ones first.

        Args:
            positive: bool [R], whether a region matches an object.
            generator: of random numbers, on the CPU, so that all devices sample the same; None takes torch's.
        """
        rows = positive.nonzero()[:, 0], (~positive).nonzero()[:, 0]
        counts = self.counts(len(rows[0]), len(rows[1]))
        orders = [torch.randperm(len(part), generator=generator) for part in rows]
        return torch.cat(
            [part[order[:count].to(part.device)] for part, order, count in zip(rows, orders, counts, strict=True)]
        )

    def counts(self, positives: int, negatives: int) -> tuple[int, int]:
        """Return how many of the positive and negative candidates are sampled."""
        taken = min(positives, int(self.count * self.positive_fraction))
        limit = self.count - taken
        if self.negatives_per_positive is not None:
            limit = min(limit, int(self.negatives_per_positive * max(taken, 1)))
        return taken, min(negatives, limit)
