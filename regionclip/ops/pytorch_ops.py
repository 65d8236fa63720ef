"""Operators without an extension: RoIAlign in PyTorch, NMS from torchvision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.ops.reference import soft_nms
from regionclip.ops.sampling import Pooling, axis_grids, axis_taps
from regionclip.ops.torchvision_ops import nms

__all__ = ["nms", "roi_align", "soft_nms"]

REGIONS_AT_ONCE = 32
TAPS_AT_ONCE = 1 << 22
"""Limits of the working memory."""


def roi_align(features: Tensor, rois: Tensor, pooling: Pooling, memory_format: torch.memory_format) -> Tensor:
    """Sum weighted rows of the channels-last map; regions with equal sampling grids are batched."""
    bins = pooling.output_size
    channels, height, width = features.shape[1:]
    if not len(rois) or not features.numel():
        return features.new_zeros(len(rois), channels, *bins) + 0 * features.sum()
    dtype = torch.promote_types(features.dtype, torch.float32)
    # The padding cells are zero; [N * (H + 1) * (W + 1), C].
    rows = F.pad(features.permute(0, 2, 3, 1).to(dtype), (0, 0, 0, 1, 0, 1)).reshape(-1, channels)
    parts, order = [], []
    for group in _groups(rois, pooling):
        ys = axis_taps(rois[group, 2], rois[group, 4], bins[0], pooling, height)
        xs = axis_taps(rois[group, 1], rois[group, 3], bins[1], pooling, width)
        first = rois[group, 0].long()[:, None, None, None, None] * (height + 1) * (width + 1)
        # [R, h, w, y taps, x taps]
        cells = first + ys.cells[:, :, None, :, None] * (width + 1) + xs.cells[:, None, :, None, :]
        weights = ys.weights[:, :, None, :, None] * xs.weights[:, None, :, None, :]
        shape = (len(group) * bins[0] * bins[1], -1)
        sums = F.embedding_bag(
            cells.reshape(shape), rows, mode="sum", per_sample_weights=weights.reshape(shape).to(dtype)
        )
        parts.append(sums.to(features.dtype).view(len(group), *bins, channels))
        order.append(group)
    pooled = torch.cat(parts)[torch.cat(order).argsort()].permute(0, 3, 1, 2)  # [R, C, h, w], stored channels-last
    return pooled.contiguous(memory_format=memory_format)


def _groups(rois: Tensor, pooling: Pooling) -> Iterator[Tensor]:
    """Yield rows of regions with the same number of samples, in chunks of bounded memory."""
    bins_y, bins_x = pooling.output_size
    grids = torch.stack(
        [
            axis_grids(rois[:, 2], rois[:, 4], bins_y, pooling),
            axis_grids(rois[:, 1], rois[:, 3], bins_x, pooling),
        ],
        dim=1,
    )
    kinds, of_roi = grids.unique(dim=0, return_inverse=True)
    for kind, (y, x) in enumerate(kinds.tolist()):
        taps = 4 * max(y, 1) * max(x, 1) * bins_y * bins_x
        yield from (of_roi == kind).nonzero()[:, 0].split(max(1, min(REGIONS_AT_ONCE, int(TAPS_AT_ONCE / taps))))
