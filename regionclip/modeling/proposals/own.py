"""A detector's own proposals as the output of a model, to evaluate their recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from regionclip.modeling.detector import require_detector
from regionclip.modeling.inference.early_end import objectness_of
from regionclip.modeling.proposals.sources import ImageInput


class OwnProposals(nn.Module):
    """Returns what Detectron2's `ProposalNetwork` returns: `proposals` in pixels of the original images."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a detector; raises `UserError` for any other model."""
        super().__init__()
        self.detector = require_detector(model)

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[ImageInput]) -> list[dict[str, Any]]:
        """Return for each image `proposal_boxes`, clipped to the original image, and `objectness_logits`, or zeros."""
        encodings = self.detector.encode_images(batched_inputs)
        pairs = zip(batched_inputs, encodings, strict=True)
        return [{"proposals": _of_original(encoding.proposals, image)} for image, encoding in pairs]


def _of_original(proposals: Instances, image: ImageInput) -> Instances:
    size = image.get("height", proposals.image_size[0]), image.get("width", proposals.image_size[1])
    boxes = Boxes(proposals.proposal_boxes.tensor.clone())
    boxes.scale(size[1] / proposals.image_size[1], size[0] / proposals.image_size[0])
    boxes.clip(size)
    kept = boxes.nonempty()
    return Instances(size, proposal_boxes=boxes[kept], objectness_logits=objectness_of(proposals)[kept])
