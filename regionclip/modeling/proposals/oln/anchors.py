"""Anchors of OLN: their coding, their matching with objects, and their targets (Kim et al., section III)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling.sampling import subsample_labels
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
"""Labels of anchors."""

_TINY = 1e-12


def encode_distances(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances from anchor centers to the left, top, right and bottom of boxes, in sides of the anchors.

    Args:
        anchors: float [N, 4], xyxy.
        boxes: float [N, 4], xyxy.

    Returns:
        float [N, 4]; negative where the center is outside of the box.
    """
    centers, sides = _centers_and_sides(anchors)
    return torch.cat([(centers - boxes[:, :2]) / sides, (boxes[:, 2:] - centers) / sides], dim=1)


def decode_distances(anchors: Tensor, distances: Tensor) -> Tensor:
    """Return the boxes [..., 4] of distances [..., 4] from anchors [..., 4]: linear, without any clamping."""
    centers, sides = _centers_and_sides(anchors)
    return torch.cat([centers - distances[..., :2] * sides, centers + distances[..., 2:] * sides], dim=-1)


def _centers_and_sides(anchors: Tensor) -> tuple[Tensor, Tensor]:
    first, last = anchors.split(2, dim=-1)
    return (first + last) / 2, last - first


def centerness(distances: Tensor) -> Tensor:
    """Return the centerness [N] of distances [N, 4], as of FCOS; 0 for a center outside of its box."""
    left, top, right, bottom = distances.unbind(dim=1)
    ratios = [torch.minimum(a, b) / (torch.maximum(a, b) + _TINY) for a, b in ((left, right), (top, bottom))]
    inside = (distances > 0).all(dim=1)
    return torch.where(inside, (ratios[0] * ratios[1]).clamp(min=0).sqrt(), 0.0)


def aligned_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU [N] of pairs of boxes [N, 4], xyxy; 0 where a box has a negative side."""
    sides = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp(min=0)
    overlap = sides.prod(dim=1)
    areas = [(part[:, 2:] - part[:, :2]).prod(dim=1) for part in (boxes, others)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-6)


Quality = Callable[[Tensor, Tensor], Tensor]
"""Maps boxes [N, 4] and their objects [N, 4] to the localization quality [N] in [0, 1]."""


def centerness_of(boxes: Tensor, objects: Tensor) -> Tensor:
    """Return the centerness [N] of the centers of boxes [N, 4] in objects [N, 4]."""
    return centerness(encode_distances(boxes, objects))


QUALITIES: dict[str, Quality] = {"centerness": centerness_of, "iou": aligned_iou}
"""Values of MODEL.OLN.OBJ_TARGET and SCORE_TARGET."""


@dataclass(frozen=True)
class AnchorMatcher:
    """Matches anchors with objects by IoU."""

    negative: float
    """Anchors with less are negative."""
    positive: float
    """Anchors with at least this are positive; those between are ignored."""
    min_best: float = 0.3
    """An object whose best anchors have at least this takes them, whatever `positive` says."""

    def __call__(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Match A anchors with G objects.

        Of several objects that take the same anchor the last one has it, although it may overlap another more.

        Args:
            iou: float [G, A].

        Returns:
            The object int64 [A] of each anchor, and the labels int8 [A].
        """
        if not iou.numel():  # no object, or no anchor inside of a small image
            none = torch.zeros(iou.shape[1], dtype=torch.int64, device=iou.device)
            return none, none.to(torch.int8)
        best, objects = iou.max(dim=0)
        labels = torch.full_like(objects, IGNORED, dtype=torch.int8)
        labels[best < self.negative] = NEGATIVE
        labels[best >= self.positive] = POSITIVE
        for number, (row, highest) in enumerate(zip(iou, iou.amax(dim=1), strict=True)):
            if float(highest) >= self.min_best:
                taken = row == highest
                objects[taken], labels[taken] = number, POSITIVE
        return objects, labels


@dataclass(frozen=True)
class AnchorSampler:
    """Samples anchors of an image for a loss."""

    count: int
    positive_fraction: float
    """Highest fraction of positive anchors."""
    fills: bool = True
    """Take negative anchors for what remains of `count`; else only positive ones."""

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows, int64, of sampled positive and negative anchors, from labels [A]."""
        positive, negative = subsample_labels(labels, self.count, self.positive_fraction, bg_label=NEGATIVE)
        return positive, negative if self.fills else negative[:0]
