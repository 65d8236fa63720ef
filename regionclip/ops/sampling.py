"""RoIAlign sampling points, shared by the PyTorch implementations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_BIN = 2.0**30
"""In cells; a region with longer bins is invalid, like one with a non-finite coordinate."""


@dataclass(frozen=True)
class Pooling:
    """RoIAlign options; fields as the arguments of `roi_align`."""

    output_size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool


@dataclass(frozen=True)
class AxisTaps:
    """Cells of a feature map that the bins of R regions read along one axis, with weights."""

    cells: Tensor
    """int64 [R, bins, taps]; two taps per sample. One past the last cell for samples that do not count."""
    weights: Tensor
    """float [R, bins, taps]: weights in the bin's mean."""


def axis_grids(low: Tensor, high: Tensor, bins: int, pooling: Pooling) -> Tensor:
    """Return the number of samples per bin, float [R], of regions from `low` to `high` [R] in image pixels."""
    _, length, lies_somewhere = _extent(low, high, bins, pooling)
    if pooling.sampling_ratio > 0:
        grids = torch.full_like(length, float(pooling.sampling_ratio))
    else:
        parts = max(-pooling.sampling_ratio, 1)
        grids = (length / bins / parts).ceil().clamp(min=0) * parts
    return torch.where(lies_somewhere, grids, torch.zeros_like(grids))


def axis_taps(low: Tensor, high: Tensor, bins: int, pooling: Pooling, size: int) -> AxisTaps:
    """Return the taps of regions from `low` to `high` [R] in image pixels on an axis of `size` > 0 cells.

    Samples are at the centers of equal parts of a bin, and are interpolated between two cells; those
    more than a cell outside the map are zero.
    """
    start, length, _ = _extent(low, high, bins, pooling)
    grid = axis_grids(low, high, bins, pooling)[:, None, None]  # [R, 1, 1]
    bin_length = (length / bins)[:, None, None]
    origin = start[:, None, None] + torch.arange(bins, device=low.device)[:, None] * bin_length  # [R, bins, 1]
    first, most = _samples_near_map(origin, bin_length, grid, size, pooling)
    number = first + torch.arange(most, device=low.device)  # [R, bins, most]
    position = origin + (number + 0.5) * bin_length / grid.clamp(min=1)
    counts = (number < grid) & (position >= -1) & (position <= size)
    position = torch.where(counts, position, torch.zeros_like(position)).clamp(min=0, max=size - 1)
    lower = position.long()
    upper = (lower + 1).clamp(max=size - 1)
    fraction = position - lower
    share = counts / grid.clamp(min=1)
    cells = [torch.where(counts, cell, torch.full_like(cell, size)) for cell in (lower, upper)]
    return AxisTaps(torch.cat(cells, dim=2), torch.cat([(1 - fraction) * share, fraction * share], dim=2))


def _samples_near_map(
    origin: Tensor, bin_length: Tensor, grid: Tensor, size: int, pooling: Pooling
) -> tuple[Tensor, int]:
    """Return the first relevant sample [R, bins, 1] and the number of them: far outside there may be 2^30."""
    most = max(int(grid.max()), 1) if grid.numel() else 1
    first = torch.zeros_like(origin)
    if pooling.sampling_ratio <= 0 and most > 2 * size + 32:
        # A step is more than half a cell, so these pass the whole map.
        most = 2 * size + 32
        first = ((-8 - origin) * grid / bin_length.clamp(min=1)).floor().clamp(min=0)
    return first, most


def _extent(low: Tensor, high: Tensor, bins: int, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
    """Return start and length in cells, and whether the region is valid; all [R]."""
    offset = 0.5 if pooling.aligned else 0.0
    start = low * pooling.spatial_scale - offset
    length = (high * pooling.spatial_scale - offset) - start
    if not pooling.aligned:
        length = length.clamp(min=1)
    lies_somewhere = torch.isfinite(start) & torch.isfinite(length) & (length.abs() / bins < LONGEST_BIN)
    zero = torch.zeros_like(start)
    return torch.where(lies_somewhere, start, zero), torch.where(lies_somewhere, length, zero), lies_somewhere
