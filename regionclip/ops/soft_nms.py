"""Soft-NMS: decays the scores of overlapping boxes instead of removing them (Bodla et al., 2017)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from regionclip.ops.implementation import implementation
from regionclip.ops.nms import as_candidates, as_limit
from regionclip.ops.soft_nms_rule import METHODS, SoftNMSMethod, SoftNMSRule

ClassSeparation = Literal["exact", "upstream"]


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
        scores: float [N]; of equal scores the earlier box wins, and a box with score NaN
            is dropped.
        classes: int64 [N].
        method: how scores decay with the IoU; an IoU of NaN counts as 0.
        sigma: width of the Gaussian decay, above 0.
        iou_threshold: IoU where the linear and hard decays begin.
        prune_threshold: boxes whose score does not exceed it after a decay are dropped.
        class_separation: `exact` compares classes; `upstream` offsets the boxes of each class in
            float32, which loses digits for large class numbers but is bit-identical to upstream.
        max_detections: stop after this number of boxes; exact, since emitted scores never increase.

    Returns:
        int64 [M] indices in order of emission, and float [M] decayed scores, descending.

    Raises:
        ValueError: mismatched shapes, an unknown method, or sigma not above 0.
    """
    if method not in METHODS:
        raise ValueError(f"unknown soft-NMS method {method!r}: use one of {', '.join(METHODS)}")
    if not sigma > 0:
        raise ValueError(f"soft_nms: expected sigma above 0, got {sigma}")
    boxes, scores = as_candidates(boxes, scores, classes)
    separate: Tensor | None = classes.long()
    if class_separation == "upstream" and len(boxes):
        boxes = boxes + (classes.to(boxes) * (boxes.max() + 1))[:, None]
        separate = None
    rule = SoftNMSRule(method, float(sigma), float(iou_threshold), float(prune_threshold))
    return implementation(boxes.device).soft_nms(boxes, scores, separate, rule, as_limit(max_detections))
