"""Sine encodings of grid cells and of anchor boxes, and the valid part of padded maps (DAB-DETR, section 3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = 128
"""Channels of the encoding of one coordinate."""

GRID_TEMPERATURE, ANCHOR_TEMPERATURE = 20.0, 10000.0
"""The published system has both, for the image grid and for the anchors (`pe_temperature` is the first)."""

EPSILON = 1e-6


class ValidCells(NamedTuple):
    """Cells of a padded feature map that belong to each image."""

    padding: Tensor
    """bool [N, H, W], true where there is no image."""
    columns: Tensor
    """int64 [N]."""
    rows: Tensor
    """int64 [N]."""


def sine(values: Tensor, temperature: float) -> Tensor:
    """Encode values in [0, 1] as `CHANNELS` channels [..., CHANNELS]: sine and cosine in turn, by frequency."""
    pairs = torch.arange(CHANNELS // 2, dtype=torch.float32, device=values.device)
    angles = values[..., None] * (2 * math.pi) / temperature ** (2 * pairs / CHANNELS)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # [..., CHANNELS / 2, 2] -> [..., CHANNELS]


def encode_grid(padding: Tensor, temperature: float = GRID_TEMPERATURE) -> Tensor:
    """Encode the cells of a map: [N, 2 * CHANNELS, H, W], y before x; padded cells get arbitrary values.

    Args:
        padding: bool [N, H, W], true where there is no image.
        temperature: MODEL.CORA.GRID_TEMPERATURE.
    """
    inside = (~padding).float()
    y = (inside.cumsum(1) - 0.5) / (inside.sum(1, keepdim=True) + EPSILON)
    x = (inside.cumsum(2) - 0.5) / (inside.sum(2, keepdim=True) + EPSILON)
    return torch.cat([sine(y, temperature), sine(x, temperature)], dim=3).permute(0, 3, 1, 2)


def encode_anchors(boxes: Tensor, temperature: float = ANCHOR_TEMPERATURE) -> Tensor:
    """Encode boxes [..., 4] (cx, cy, w, h in [0, 1]) as [..., 4 * CHANNELS], in the order y, x, w, h."""
    x, y, width, height = boxes.unbind(-1)
    return torch.cat([sine(value, temperature) for value in (y, x, width, height)], dim=-1)


def padding_of(sizes: list[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
    """Return bool [N, *padded], true outside of images of `sizes`; all are (height, width)."""
    padding = torch.ones(len(sizes), *padded, dtype=torch.bool, device=device)
    for image, (rows, columns) in zip(padding, sizes, strict=True):
        image[:rows, :columns] = False
    return padding


def padded_size(images: Tensor, stride: int) -> tuple[int, int]:
    """Return the (height, width) of a batch [N, C, H, W], padded to at least the stride of a feature map."""
    return max(images.shape[2], stride), max(images.shape[3], stride)


def valid_cells(padding: Tensor, size: tuple[int, int]) -> ValidCells:
    """Return the valid part of a feature map, by nearest-neighbor sampling of the padding of the images.

    Args:
        padding: bool [N, H, W] in pixels of the batch.
        size: (height, width) of the feature map.
    """
    cells = F.interpolate(padding[:, None].float(), size=size).bool()[:, 0]  # [N, h, w]
    return ValidCells(cells, (~cells[:, 0, :]).sum(1), (~cells[:, :, 0]).sum(1))


def logit(values: Tensor, margin: float) -> Tensor:
    """Return the inverse of the sigmoid, of values clamped to [0, 1] and each part to at least `margin`."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=margin) / (1 - values).clamp(min=margin))
