"""An image with its cached encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionclip.data.photographs import is_photograph
from regionclip.data.test_loader import TestMapper
from regionclip.isolation import with_own_settings
from regionclip.modeling.detector import ImageEncoding, OpenVocabularyDetector


class EncodedImage:
    """An image whose encoding by the detector is computed on first access."""

    def __init__(self, model: OpenVocabularyDetector, pixels: NDArray[np.uint8], mapper: TestMapper, key: str) -> None:
        """Store an image, uint8 [H, W, 3] in RGB, for a detector, and its `image_key`."""
        self.pixels, self.key = pixels, key
        self.size: tuple[int, int] = (pixels.shape[0], pixels.shape[1])
        self.model = model
        self._mapper, self._input = mapper, mapper.map_pixels(pixels)
        height, width = self._input["image"].shape[1:]
        self.network_size: tuple[int, int] = (height, width)

    @cached_property
    @with_own_settings
    def encoding(self) -> ImageEncoding:
        """The detector's encoding, which does not depend on class names."""
        return self.model.encode_images([self._input], proposals=False)[0]

    @cached_property
    def is_photograph(self) -> bool:
        """Whether it is evidently one."""
        return is_photograph(self.pixels)

    def part(self, x1: int, y1: int, x2: int, y2: int) -> EncodedImage:
        """Return a part of the image, in whole pixels, as an image of its own."""
        pixels = np.ascontiguousarray(self.pixels[y1:y2, x1:x2])
        return EncodedImage(self.model, pixels, self._mapper, f"{self.key} {x1} {y1} {x2} {y2}")

    @property
    def scale(self) -> Tensor:
        """Factors [4] from xyxy in pixels of the image to pixels of the network input."""
        vertical, horizontal = (network / own for network, own in zip(self.network_size, self.size, strict=True))
        return torch.tensor([horizontal, vertical, horizontal, vertical])

    @staticmethod
    @with_own_settings
    def encode_together(images: Sequence[EncodedImage], *, proposals: bool = True) -> None:
        """Encode images of one detector in one batch, unless they are encoded already.

        Images are padded to the largest, which slightly changes the detections in smaller ones.

        Args:
            images: of equal images only the first is encoded, as it is the cached one.
            proposals: also compute the proposals. Detection decides how many of them are encoded.
        """
        distinct = {image.key: image for image in reversed(images)}.values()
        missing = [image for image in distinct if "encoding" not in vars(image)]
        if missing:
            encodings = missing[0].model.encode_images([image._input for image in missing], proposals=proposals)
            for image, encoding in zip(missing, encodings, strict=True):
                image.encoding = encoding


def image_key(pixels: NDArray[np.uint8]) -> str:
    """Return a hash that only equal images share."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
