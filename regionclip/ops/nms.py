"""Non-maximum suppression, with torchvision's signatures."""

from __future__ import annotations

import torch
from torch import Tensor

from regionclip.ops.implementation import implementation


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_detections: int | None = None) -> Tensor:
    """Suppress boxes that overlap a higher-scoring one.

    Args:
        boxes: float [N, 4], xyxy in pixels.
        scores: float [N]; of equal scores the earlier box wins, and a box with score NaN
            is dropped.
        iou_threshold: a box is dropped if its IoU with a kept one exceeds this. An IoU that is NaN,
            of boxes without area or with infinite coordinates, does not.
        max_detections: stop after this number of kept boxes.

    Returns:
        int64 [M], indices of the kept boxes in descending order of score.

    Raises:
        ValueError: mismatched shapes.
    """
    return _suppress(boxes, scores, None, iou_threshold, max_detections)


def batched_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, max_detections: int | None = None
) -> Tensor:
    """Suppress boxes that overlap a higher-scoring one of the same class; classes int64 [N], the rest as for `nms`."""
    return _suppress(boxes, scores, classes.long(), iou_threshold, max_detections)


def as_candidates(boxes: Tensor, scores: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return boxes and scores in a common dtype of at least 32 bits.

    Raises:
        ValueError: mismatched shapes.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"nms: expected boxes [N, 4] (x1, y1, x2, y2), got {list(boxes.shape)}")
    for name, values in (("scores", scores), ("classes", classes)):
        if values is not None and values.shape != boxes.shape[:1]:
            raise ValueError(f"nms: expected {name} [{len(boxes)}], one a box, got {list(values.shape)}")
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    return boxes.detach().to(dtype), scores.detach().to(dtype)


def as_limit(max_detections: int | None) -> int:
    """Return the limit for the implementations, -1 for None; raises `ValueError` if negative."""
    if max_detections is not None and max_detections < 0:
        raise ValueError(f"nms: expected max_detections of at least 0 or None, got {max_detections}")
    return -1 if max_detections is None else max_detections


def _suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, max_detections: int | None
) -> Tensor:
    boxes, scores = as_candidates(boxes, scores, classes)
    return implementation(boxes.device).nms(boxes, scores, classes, float(iou_threshold), as_limit(max_detections))
