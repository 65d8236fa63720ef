"""Bipartite matching between queries and annotated boxes of the class that a query is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

INADMISSIBLE = 99.0
"""Cost of a pair that must not be matched; `largest_cost` of the weights has to stay below."""


class Targets(NamedTuple):
    """Annotated objects of one image."""

    boxes: Tensor
    """float [G, 4], cx, cy, w, h in [0, 1]."""
    labels: Tensor
    """int64 [G]."""


class LayerOutput(NamedTuple):
    """Output of one decoder layer."""

    logits: Tensor
    """Objectness [N, Q]."""
    boxes: Tensor
    """[N, Q, 4], cx, cy, w, h in [0, 1]."""


@dataclass(frozen=True)
class MatchingWeights:
    """Weights of the terms of the matching cost, and of the losses (MODEL.CORA.COST and LOSS)."""

    objectness: float = 2.0
    l1: float = 5.0
    giou: float = 2.0

    def largest_cost(self) -> float:
        """Return a bound of the matching cost: a focal term of 4.61, four sides that differ by 1, a GIoU of -1."""
        return 4.61 * self.objectness + 4 * self.l1 + self.giou


@dataclass(frozen=True)
class HungarianMatcher:
    """Hungarian matching of admissible pairs: same class, and an annotated box that some query of its class touches."""

    weights: MatchingWeights = MatchingWeights()
    alpha: float = 0.25
    gamma: float = 2.0

    def cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Return the cost [Q, G] of all pairs in an image, from objectness [Q] and boxes [Q, 4]."""
        found = logits.sigmoid()[:, None]
        positive = self.alpha * (1 - found) ** self.gamma * -(found + 1e-8).log()
        negative = (1 - self.alpha) * found**self.gamma * -(1 - found + 1e-8).log()
        distance = torch.cdist(boxes, targets.boxes, p=1)
        overlap = pairwise_giou(boxes, targets.boxes)
        weights = self.weights
        return weights.objectness * (positive - negative) + weights.l1 * distance - weights.giou * overlap

    def restricted_cost(self, logits: Tensor, boxes: Tensor, classes: Tensor, targets: Targets) -> Tensor:
        """Return `cost` with `INADMISSIBLE` for other pairs; `classes` int64 [Q] are those of the queries."""
        same = classes[:, None] == targets.labels[None]
        touched = (same & (pairwise_giou(boxes, targets.boxes) > 0)).any(dim=0, keepdim=True)
        return self.cost(logits, boxes, targets).masked_fill(~(same & touched), INADMISSIBLE)

    @torch.no_grad()
    def match(self, predictions: LayerOutput, classes: Tensor, targets: Sequence[Targets]) -> list[Tensor]:
        """Return the matched pairs (query, object) of each image, int64 [M, 2]; `classes` [N, Q] of the queries."""
        from scipy.optimize import linear_sum_assignment

        pairs = []
        for logits, boxes, own, target in zip(*predictions, classes, targets, strict=True):
            cost = self.restricted_cost(logits, boxes, own, target).cpu()
            rows, columns = linear_sum_assignment(cost.numpy())
            found = torch.from_numpy(np.stack([rows, columns], axis=1))
            pairs.append(found[cost[rows, columns] < INADMISSIBLE].to(logits.device))
        return pairs


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalized IoU [Q, G] of boxes (cx, cy, w, h)."""
    corners = (box_convert(part, "cxcywh", "xyxy") for part in (boxes, others))
    return generalized_box_iou(*corners)
