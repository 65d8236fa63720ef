"""Pretraining regions without an RPN: random boxes and grid cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.modeling.proposals.sources import ImageInput

RANDOM_CELL, GRID_CELL = 8, 32
"""Grid step of random box edges and side of a grid cell, in pixels (upstream's first version)."""


class RandomBoxes:
    """Boxes with random corner and size, aligned to a fine grid (CROP_REGION_TYPE RANDOM)."""

    def __init__(self, count: int) -> None:
        """Create a source of `count` boxes per image."""
        self.count = count

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return for each image `proposal_boxes` [count, 4], xyxy in pixels, inside the image."""
        return [_instances(image, self._boxes(image), device) for image in inputs]

    def _boxes(self, image: ImageInput) -> Tensor:
        generator, sides = image_generator(image), image["image"].shape[:0:-1]  # width, height
        edges = []
        for side in sides:
            cells = max(side // RANDOM_CELL, 1)
            first = torch.randint(cells, (self.count,), generator=generator)
            # The opposite edge is that of a random cell from there on.
            last = first + (torch.rand(self.count, generator=generator) * (cells - first)).long()
            edges += [first * RANDOM_CELL, ((last + 1) * RANDOM_CELL).clamp(max=side)]
        left, right, top, bottom = edges
        return torch.stack([left, top, right, bottom], dim=1).float()


class GridBoxes:
    """The cells of a regular grid (CROP_REGION_TYPE GRID)."""

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return for each image the boxes of all grid cells, row by row, clipped to the image."""
        return [_instances(image, self._boxes(image), device) for image in inputs]

    def _boxes(self, image: ImageInput) -> Tensor:
        height, width = image["image"].shape[1:]
        tops, lefts = torch.arange(0, height, GRID_CELL), torch.arange(0, width, GRID_CELL)
        top, left = (axis.flatten() for axis in torch.meshgrid(tops, lefts, indexing="ij"))
        right, bottom = (left + GRID_CELL).clamp(max=width), (top + GRID_CELL).clamp(max=height)
        return torch.stack([left, top, right, bottom], dim=1).float()


def image_generator(image: ImageInput) -> torch.Generator:
    """Return a generator seeded by the `seed` of the image; without one, by torch's global generator."""
    generator = torch.Generator()
    return generator.manual_seed(image["seed"] if "seed" in image else int(torch.randint(2**31, ())))


def _instances(image: ImageInput, boxes: Tensor, device: torch.device) -> Instances:
    height, width = image["image"].shape[1:]
    return Instances((height, width), proposal_boxes=Boxes(boxes)).to(device)
