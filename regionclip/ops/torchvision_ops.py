"""Operators of torchvision, guarded against inputs that crash them or lose precision."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from regionclip.ops.reference import soft_nms
from regionclip.ops.sampling import Pooling

__all__ = ["nms", "roi_align", "soft_nms"]

LARGEST_COORDINATE = 4e3
"""In cells; torchvision's memory grows with the square of a region's size."""


def roi_align(features: Tensor, rois: Tensor, pooling: Pooling, memory_format: torch.memory_format) -> Tensor:
    """Apply torchvision's RoIAlign; raises `ValueError` for regions that would crash it."""
    if not features.numel():
        return features.new_zeros(len(rois), features.shape[1], *pooling.output_size) + 0 * features.sum()
    cells = rois[:, 1:] * pooling.spatial_scale
    if not bool((cells.abs() <= LARGEST_COORDINATE).all() & (cells[:, 2:] >= cells[:, :2]).all()):
        raise ValueError(
            f"roi_align of torchvision: expected finite boxes within {LARGEST_COORDINATE:g} cells, "
            "with x1 <= x2 and y1 <= y2, got others. "
            "Fix: drop them, or use another implementation (REGIONCLIP_OPS)"
        )
    height, width = pooling.output_size
    parts = max(-pooling.sampling_ratio, 1)
    pooled = torchvision.ops.roi_align(
        features,
        rois.to(features.dtype),
        (parts * height, parts * width),
        pooling.spatial_scale,
        pooling.sampling_ratio,
        pooling.aligned,
    )
    pooled = F.avg_pool2d(pooled, parts)
    return pooled.contiguous(memory_format=memory_format)


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, limit: int) -> Tensor:
    """Apply NMS class by class: class offsets would cost precision."""
    candidates = (~scores.isnan()).nonzero()[:, 0]
    kept = [
        rows[torchvision.ops.nms(boxes[rows], scores[rows], iou_threshold)]
        for rows in _rows_of_classes(candidates, classes)
    ]
    if not kept:
        return candidates[:0]
    indices = torch.cat(kept).sort().values
    order = scores[indices].argsort(descending=True, stable=True)
    return indices[order][: limit if limit >= 0 else None]


def _rows_of_classes(candidates: Tensor, classes: Tensor | None) -> list[Tensor]:
    if classes is None:
        return [candidates]
    of_class, order = classes[candidates].sort(stable=True)
    counts = of_class.unique_consecutive(return_counts=True)[1].tolist()
    return list(candidates[order].split(counts)) if counts else []
