"""Crops that show the whole box: the longer side is resized, and the rest of the square is padded (RALF).

`clip/crops.py` has CLIP's own preprocessing, which cuts out the center.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def whole_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return boxes in whole pixels, int64 [R, 4] with excluded ends: clipped to the image, truncated, not empty.

    An empty side is extended by the pixel before it, or at the border of the image by the one after it. A box that is
    not finite gets one pixel.

    Args:
        boxes: float [R, 4], xyxy in pixels of the image.
        image_size: (height, width) of the image.
    """
    height, width = image_size
    limits = boxes.new_tensor([width, height, width, height])
    pixels = boxes.nan_to_num().clamp(min=torch.zeros_like(limits), max=limits).long()
    first, last = pixels[:, :2], pixels[:, 2:]
    empty = last <= first
    before = empty & (first >= 1)
    return torch.cat([first - before.long(), last + (empty & ~before).long()], dim=1)


def padded_crops(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Return square crops, float [R, C, side, side], centered and padded with zeros, bilinear without antialiasing.

    Args:
        image: float [C, H, W].
        boxes: int64 [R, 4], as `whole_pixels` returns them.
        side: in pixels.
    """
    crops = image.new_zeros(len(boxes), image.shape[0], side, side)
    for crop, (x1, y1, x2, y2) in zip(crops, boxes.tolist(), strict=True):
        height, width = resized_size(y2 - y1, x2 - x1, side)
        top, left = (side - height) // 2, (side - width) // 2
        resized = F.interpolate(image[None, :, y1:y2, x1:x2], (height, width), mode="bilinear", align_corners=False)
        crop[:, top : top + height, left : left + width] = resized[0]
    return crops


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width after resizing the longer one to `side`; the shorter one is rounded up."""
    longer = max(height, width)
    return math.ceil(height * side / longer), math.ceil(width * side / longer)


class PixelMode(Protocol):
    """How pixels of the detector's input become the input of CLIP."""

    def __call__(self, image: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return crops, float [R, 3, side, side], of an image, uint8 [3, H, W], at boxes in whole pixels."""
        ...


def normalize_for_clip(crops: Tensor) -> Tensor:
    """Return crops [R, 3, S, S] in 0 to 255, normalized by CLIP's mean and deviation."""
    mean, std = (crops.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (crops / 255 - mean) / std


class CLIPPixels:
    """RGB in CLIP's normalization, padded with black."""

    def __init__(self, *, swap_channels: bool = False, truncate: bool = False) -> None:
        """Create the mode.

        Args:
            swap_channels: the detector's input is BGR.
            truncate: to whole gray levels after resizing, as Object-Centric-OVD with RAF does.
        """
        self.swap_channels, self.truncate = swap_channels, truncate

    def __call__(self, image: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return crops; see `PixelMode`."""
        pixels = image.flip(0) if self.swap_channels else image
        crops = padded_crops(pixels.float(), boxes, side)
        return normalize_for_clip(crops.trunc() if self.truncate else crops)


class DetectorPixels:
    """In the detector's normalization, padded with its mean color, as DetPro and OADP with RAF do."""

    def __init__(self, normalize: Callable[[Tensor], Tensor]) -> None:
        """Create the mode; `normalize` maps an image, uint8 [3, H, W], to the input of the detector."""
        self.normalize = normalize

    def __call__(self, image: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return crops; see `PixelMode`."""
        return padded_crops(self.normalize(image), boxes, side)
