"""Classification by learned prototypes: one weight vector for each class, without bias or normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from regionclip.modeling.losses.classification import sigmoid_focal


class PrototypeOutputLayers(nn.Module):
    """Class logits by prototypes, and class-agnostic box deltas."""

    def __init__(self, channels: int, base: int, novel: int, box_weights: Sequence[float]) -> None:
        """Create the layers.

        Args:
            channels: C, of region features.
            base: number of base classes, whose prototypes start random.
            novel: number of novel classes with prototypes, which start as zeros: every class equally likely.
            box_weights: of the box deltas.
        """
        super().__init__()
        self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(base, channels)))
        self.novel_prototypes = nn.Parameter(torch.zeros(novel, channels)) if novel else None
        self.bbox_pred = nn.Linear(channels, 4)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)
        self.transform = Box2BoxTransform(weights=tuple(box_weights))

    @property
    def all_prototypes(self) -> Tensor:
        """Float [K, C]: base, then novel ones if there are any."""
        if self.novel_prototypes is None:
            return self.prototypes
        return torch.cat([self.prototypes, self.novel_prototypes])

    def losses(self, features: Tensor, labels: Tensor, boxes: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """Return the focal loss of base classes, and the L1 loss of the deltas of positive regions.

        Args:
            features: float [R, C], of sampled regions.
            labels: int64 [R]; the number of base classes is background.
            boxes: float [R, 4], xyxy in pixels of the network input.
            objects: float [R, 4], of the matched objects; arbitrary for background.
        """
        positive = (labels < len(self.prototypes)).nonzero()[:, 0]
        wanted = self.transform.get_deltas(boxes[positive], objects[positive])
        difference = (self.bbox_pred(features[positive]) - wanted).abs().sum()
        return {
            "loss_cls": sigmoid_focal(features @ self.prototypes.T, labels),
            "loss_box_reg": difference / max(len(labels), 1),
        }
