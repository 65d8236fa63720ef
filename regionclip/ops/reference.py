"""Reference operators that follow the definitions, unoptimized: the fast ones are tested against them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from regionclip.ops.sampling import Pooling, axis_taps
from regionclip.ops.soft_nms_rule import SoftNMSRule


def roi_align(features: Tensor, rois: Tensor, pooling: Pooling, memory_format: torch.memory_format) -> Tensor:
    """Average bilinear samples in the bins of each region, one region at a time."""
    bins_y, bins_x = pooling.output_size
    height, width = features.shape[-2:]
    if not len(rois) or not height or not width:
        return features.new_zeros(len(rois), features.shape[1], bins_y, bins_x) + 0 * features.sum()
    dtype = torch.promote_types(features.dtype, torch.float32)
    ys = axis_taps(rois[:, 2], rois[:, 4], bins_y, pooling, height)
    xs = axis_taps(rois[:, 1], rois[:, 3], bins_x, pooling, width)
    maps = F.pad(features.to(dtype), (0, 1, 0, 1))  # the padding cells are zero
    pooled = []
    for i, image in enumerate(rois[:, 0].long().tolist()):
        values = maps[image][:, ys.cells[i]][:, :, :, xs.cells[i]]  # [C, h, y taps, w, x taps]
        pooled.append(torch.einsum("cpyqx,py,qx->cpq", values, ys.weights[i].to(dtype), xs.weights[i].to(dtype)))
    return torch.stack(pooled).to(features.dtype).contiguous(memory_format=memory_format)


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, limit: int) -> Tensor:
    """Keep the highest-scoring box, drop those of its class that overlap it, and repeat."""
    remaining = (~scores.isnan()).nonzero()[:, 0]
    remaining = remaining[scores[remaining].argsort(descending=True, stable=True)]
    kept: list[Tensor] = []
    while len(remaining) and len(kept) != limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        # An IoU of NaN exceeds no threshold.
        overlaps = box_iou(boxes[best : best + 1], boxes[remaining])[0].double() > iou_threshold
        remaining = remaining[~(overlaps & _same_class(classes, best, remaining))]
    return torch.stack(kept) if kept else remaining[:0]


def soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor | None, rule: SoftNMSRule, limit: int
) -> tuple[Tensor, Tensor]:
    """Emit the highest-scoring box, decay the scores of those of its class that overlap it, and repeat."""
    remaining = (~scores.isnan()).nonzero()[:, 0]
    scores = scores[remaining]
    kept: list[Tensor] = []
    kept_scores: list[Tensor] = []
    while len(remaining) and len(kept) != limit:
        position = int(scores.argmax())
        best = remaining[position]
        kept.append(best)
        kept_scores.append(scores[position])
        iou = box_iou(boxes[best : best + 1], boxes[remaining])[0]
        factors = rule.factors(torch.where(iou.isnan(), 0.0, iou))
        scores = torch.where(_same_class(classes, best, remaining), scores * factors, scores)
        stays = scores > rule.prune_threshold
        stays[position] = False
        remaining, scores = remaining[stays], scores[stays]
    if not kept:
        return remaining[:0], scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)


def _same_class(classes: Tensor | None, best: Tensor, remaining: Tensor) -> Tensor:
    if classes is None:
        return torch.ones_like(remaining, dtype=torch.bool)
    return classes[remaining] == classes[best]
