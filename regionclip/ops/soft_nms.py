"""Soft-NMS: overlapping boxes lose score instead of vanishing (Bodla et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

SoftNMSMethod = Literal["hard", "linear", "gaussian"]
ClassSeparation = Literal["exact", "upstream"]

Decay = Callable[[Tensor], Tensor]
"""Maps the IoU [N] with the box just emitted to the factor [N] on the scores."""


def decay_function(method: SoftNMSMethod, sigma: float, iou_threshold: float) -> Decay:
    """Return how scores fall with overlap; raises `ValueError` for an unknown method."""
    decays: dict[str, Decay] = {
        "gaussian": lambda iou: torch.exp(-(iou**2) / sigma),
        "linear": lambda iou: torch.where(iou > iou_threshold, 1 - iou, torch.ones_like(iou)),
        "hard": lambda iou: (iou < iou_threshold).to(iou.dtype),
    }
    if method not in decays:
        raise ValueError(f"unknown soft-NMS method {method!r}: use one of {', '.join(decays)}")
    return decays[method]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    method: SoftNMSMethod = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    prune_threshold: float = 0.001,
    class_separation: ClassSeparation = "exact",
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Emit boxes by descending score, decaying the scores of the remaining overlapping boxes of their class.

    Args:
        boxes: float [N, 4], xyxy in pixels.
        scores: float [N].
        classes: int64 [N].
        method: how scores decay with the IoU.
        sigma: width of the Gaussian decay.
        iou_threshold: where the linear and hard decays begin.
        prune_threshold: boxes whose score does not exceed it after a decay are dropped.
        class_separation: `exact` compares classes; `upstream` shifts the boxes of each class by a
            float32 offset, which loses digits for large class numbers but gives upstream's bits.
        max_detections: stop after so many; exact, since emitted scores never increase.

    Returns:
        int64 [M] indices in order of emission, and float [M] rescored scores, descending.
    """
    decay = decay_function(method, sigma, iou_threshold)
    if len(boxes) and class_separation == "upstream":
        boxes = boxes + (classes.to(boxes) * (boxes.max() + 1))[:, None]
    limit = len(boxes) if max_detections is None else min(max_detections, len(boxes))
    remaining = torch.arange(len(boxes), device=boxes.device)
    scores = scores.clone()
    kept: list[Tensor] = []
    kept_scores: list[Tensor] = []
    while len(kept) < limit and len(remaining):
        best = int(scores.argmax())
        kept.append(remaining[best])
        kept_scores.append(scores[best])
        iou = box_iou(boxes[best : best + 1], boxes)[0]
        if class_separation == "exact":
            iou = iou * (classes == classes[best])
        scores = scores * decay(iou)
        stays = scores > prune_threshold
        stays[best] = False
        boxes, scores, classes, remaining = boxes[stays], scores[stays], classes[stays], remaining[stays]
    if not kept:
        return remaining[:0], scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)
