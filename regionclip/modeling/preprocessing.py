"""Batching of uint8 images of different sizes: normalization and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F


def pixels_to_unit_range(cfg: CfgNode) -> bool:
    """Return whether PIXEL_MEAN is meant for pixels in [0, 1], as CLIP's is: upstream's rule is a sum below 3."""
    return sum(cfg.MODEL.PIXEL_MEAN) < 3.0


class ImagePreprocessor(nn.Module):
    """Normalizes images and zero-pads them, right and bottom, to a common size."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        unit_range: bool,
        flip_channels: bool = False,
        size_divisibility: int = 0,
    ) -> None:
        """Create a preprocessor.

        Args:
            mean: per channel, in the model's channel order.
            std: per channel.
            unit_range: divide pixels by 255 before normalization.
            flip_channels: the images have the reverse channel order (RGB for BGR, or vice versa).
            size_divisibility: pad to a multiple of this; 0 pads to the largest image of the batch.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.unit_range = unit_range
        self.flip_channels = flip_channels
        self.size_divisibility = size_divisibility
        self.dtype: torch.dtype | None = None
        """dtype of the batch, if it differs from that of the mean."""
        self.smallest = (0, 0)
        """Minimum (height, width) of the batch, as needed to match other processes."""

    def forward(self, images: Sequence[Tensor]) -> ImageList:
        """Return the batch of `images`, each [3, H, W] with values in [0, 255]."""
        batch = ImageList.from_tensors([self._normalize(image) for image in images], self.size_divisibility)
        height, width = batch.tensor.shape[-2:]
        padding = (0, max(self.smallest[1] - width, 0), 0, max(self.smallest[0] - height, 0))
        tensor = F.pad(batch.tensor, padding) if any(padding) else batch.tensor
        if tensor.device.type == "cpu":
            # The fastest layout for convolutions on a CPU; later layers keep it.
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return ImageList(tensor.to(self.dtype or tensor.dtype), batch.image_sizes)

    def _normalize(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device)
        if self.flip_channels:
            image = image.flip(0)
        if self.unit_range:
            image = image / 255.0
        return (image - self.mean) / self.std


def build_preprocessor(cfg: CfgNode, size_divisibility: int = 0, *, flip_channels: bool = False) -> ImagePreprocessor:
    """Return the preprocessor of MODEL.PIXEL_MEAN and PIXEL_STD; further arguments as for `ImagePreprocessor`."""
    return ImagePreprocessor(
        cfg.MODEL.PIXEL_MEAN,
        cfg.MODEL.PIXEL_STD,
        unit_range=pixels_to_unit_range(cfg),
        flip_channels=flip_channels,
        size_divisibility=size_divisibility,
    )
