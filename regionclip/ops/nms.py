"""Non-maximum suppression within classes."""

from __future__ import annotations

import torchvision
from torch import Tensor


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes that overlap a better box of the same class.

    Args:
        boxes: float [N, 4], xyxy in pixels.
        scores: float [N].
        classes: int64 [N].
        iou_threshold: a box is dropped when its IoU with a kept one exceeds this.

    Returns:
        int64 [M], indices of the kept boxes in descending order of score.
    """
    # Half-precision coordinates would round away the offsets that keep the classes apart.
    return torchvision.ops.batched_nms(boxes.float(), scores, classes, iou_threshold)
