"""NMS and soft-NMS on a GPU: torch sorts and selects, own CUDA kernels suppress."""

from __future__ import annotations

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, limit: int) -> Tensor:
    """Implement `regionclip::nms` for CUDA tensors."""
    by_score = scores.argsort(descending=True, stable=True)
    # A stable sort keeps the order by score within classes.
    by_class = (
        torch.arange(len(boxes), device=boxes.device) if classes is None else classes[by_score].argsort(stable=True)
    )
    order = by_score[by_class]
    sorted_classes = None if classes is None else classes[order]
    survives = torch.ops.regionclip.suppress_sorted(boxes[order], sorted_classes, scores[order], iou_threshold)
    survives_by_score = torch.empty_like(survives)
    survives_by_score[by_class] = survives
    return by_score[survives_by_score][: limit if limit >= 0 else None]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    method: int,
    sigma: float,
    iou_threshold: float,
    prune_threshold: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Implement `regionclip::soft_nms` for CUDA tensors."""
    indices, emitted, count = torch.ops.regionclip.soft_nms_padded(
        boxes, scores, classes, method, sigma, iou_threshold, prune_threshold, limit
    )
    found = int(count)
    return indices[:found], emitted[:found]


def register() -> None:
    """Register both operators for CUDA; called once after loading an extension with CUDA."""
    torch.library.impl("regionclip::nms", "CUDA")(nms)
    torch.library.impl("regionclip::soft_nms", "CUDA")(soft_nms)
