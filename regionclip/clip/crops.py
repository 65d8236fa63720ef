"""Region embeddings of image crops, by a CLIP that sees each region as an image of its own.

ViLD (Gu et al., 2022) embeds a crop of the box and one of 1.5 times its size; LP-OVOD distills and retrieves with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from regionclip.clip.architectures import CLIPArchitecture

CROP_SCALES = (1.0, 1.5)
"""Sides of the crops of a box, relative to those of the box."""

MAX_ASPECT = 17
"""Longer boxes, which CLIP would see a small part of, do not take the memory of the whole."""

CROPS_AT_ONCE = 64
"""Crops in a pass of the image encoder."""

_ROUNDING_MARGIN = 0.001
"""Edges this close to a pixel edge do not take in one more pixel."""


class EmbedsImages(Protocol):
    """An image encoder of CLIP."""

    @property
    def architecture(self) -> CLIPArchitecture:
        """The CLIP size."""
        ...

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed whole images: normalized RGB [N, 3, resolution, resolution] to [N, D]."""
        ...


def crop_boxes(boxes: Tensor, image_size: tuple[int, int], scale: float = 1.0) -> Tensor:
    """Return the whole pixels, int64 [R, 4] xyxy with excluded ends, that crops of boxes take.

    The box is enlarged around its center, extended to whole pixels, and clipped to the image. A crop without area
    gets one pixel.

    Args:
        boxes: float [R, 4], xyxy in pixels of the image.
        image_size: (height, width) of the image.
        scale: factor on width and height.
    """
    first, last = boxes.double().split(2, dim=1)
    margin = (scale - 1) / 2
    enlarged = torch.cat([first + margin * (first - last), last + margin * (last - first)], dim=1)
    pixels = torch.cat([(enlarged[:, :2] - _ROUNDING_MARGIN).floor(), (enlarged[:, 2:] + _ROUNDING_MARGIN).ceil()], 1)
    height, width = image_size
    limits = pixels.new_tensor([width, height])
    first = pixels[:, :2].clamp(min=torch.zeros_like(limits), max=limits - 1)
    last = torch.maximum(pixels[:, 2:].minimum(limits), first + 1)
    return torch.cat([first, last], dim=1).long()


def crop_image(image: Tensor, box: Sequence[int], resolution: int) -> Tensor:
    """Return one crop, uint8 [3, resolution, resolution], as CLIP preprocesses an image.

    The shorter side is resized to the resolution, bicubic with antialiasing, and the center is cut out. Of a box
    longer than `MAX_ASPECT` times its width only that much of the center is resized.

    Args:
        image: uint8 [3, H, W].
        box: x1, y1, x2, y2 in whole pixels.
        resolution: side in pixels.
    """
    x1, y1, x2, y2 = box
    crop = image[:, y1:y2, x1:x2]
    longest = MAX_ASPECT * min(crop.shape[1:])
    crop = image_ops.center_crop(crop, [min(side, longest) for side in crop.shape[1:]])
    resized = image_ops.resize(crop, [resolution], InterpolationMode.BICUBIC, antialias=True)
    return image_ops.center_crop(resized, [resolution, resolution])


class CropEncoder:
    """Embeds regions as the sum of the embeddings of their crops."""

    def __init__(
        self,
        image_encoder: EmbedsImages,
        normalize: Callable[[Tensor], Tensor],
        scales: Sequence[float] = CROP_SCALES,
    ) -> None:
        """Create an encoder.

        Args:
            image_encoder: of the CLIP model.
            normalize: maps crops uint8 [N, 3, S, S] to the input of the image encoder, on its device.
            scales: of the crops of a box.
        """
        self.image_encoder, self.normalize, self.scales = image_encoder, normalize, tuple(scales)

    def embed(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return region embeddings float [R, D], not normalized: the sum over the crops of each box.

        Args:
            image: uint8 [3, H, W], in the channel order of the encoder.
            boxes: float [R, 4], xyxy in pixels of the image.
        """
        architecture, size = self.image_encoder.architecture, (image.shape[1], image.shape[2])
        if not len(boxes):
            return boxes.new_zeros(0, architecture.embedding_dim)
        image = image.cpu()
        pixels = torch.cat([crop_boxes(boxes, size, scale) for scale in self.scales])  # [S * R, 4], scale by scale
        embedded = []
        for chunk in pixels.split(CROPS_AT_ONCE):
            crops = [crop_image(image, box, architecture.image_resolution) for box in chunk.tolist()]
            embedded.append(self.image_encoder.embed_images(self.normalize(torch.stack(crops))).float())
        return torch.cat(embedded).unflatten(0, (len(self.scales), len(boxes))).sum(dim=0)  # [S, R, D] -> [R, D]
