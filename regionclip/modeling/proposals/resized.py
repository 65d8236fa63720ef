"""Proposals on a resized image, for detectors that need its original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from regionclip.modeling.proposals.sources import ImageInput, ProposalSource


class ResizedProposals:
    """Proposal source that resizes images as in tests, and returns boxes in pixels of the images that it gets."""

    def __init__(self, source: ProposalSource, shortest_side: int, longest_side: int) -> None:
        """Create a source; sides in pixels, those of the proposal network's own config (INPUT.MIN_SIZE_TEST)."""
        self.source, self.shortest_side, self.longest_side = source, shortest_side, longest_side

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the proposals of each image."""
        found = self.source.propose([self._resized(image) for image in inputs], device)
        return [_of_size(proposals, image) for proposals, image in zip(found, inputs, strict=True)]

    def _resized(self, image: ImageInput) -> ImageInput:
        height, width = image["image"].shape[1:]
        shape = T.ResizeShortestEdge.get_output_shape(height, width, self.shortest_side, self.longest_side)
        resize = T.ResizeTransform(height, width, *(max(side, 1) for side in shape))
        pixels = resize.apply_image(np.ascontiguousarray(image["image"].permute(1, 2, 0).cpu().numpy()))  # [H, W, 3]
        return cast(ImageInput, {**image, "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())})


def _of_size(proposals: Instances, image: ImageInput) -> Instances:
    """Return proposals in pixels of an image, from those of a resized one."""
    height, width = image["image"].shape[1:]
    boxes = Boxes(proposals.proposal_boxes.tensor.clone())
    boxes.scale(width / proposals.image_size[1], height / proposals.image_size[0])
    boxes.clip((height, width))
    scaled = Instances((height, width), proposal_boxes=boxes)
    if proposals.has("objectness_logits"):
        scaled.objectness_logits = proposals.objectness_logits
    return scaled[boxes.nonempty()]
