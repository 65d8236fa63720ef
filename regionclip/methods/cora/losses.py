"""Losses of the localizer: objectness, L1 and GIoU of matched pairs, for each decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from regionclip.methods.cora.matching import HungarianMatcher, LayerOutput, MatchingWeights, Targets
from regionclip.modeling.gathering import mean_over_processes


@dataclass(frozen=True)
class LocalizerLosses:
    """Weighted losses of all decoder layers; each layer is matched for itself."""

    matcher: HungarianMatcher
    weights: MatchingWeights = field(default_factory=MatchingWeights)

    def __call__(
        self, layers: Sequence[LayerOutput], classes: Tensor, targets: Sequence[Targets]
    ) -> tuple[dict[str, Tensor], float]:
        """Return the weighted losses, and the share of annotated objects that the last layer matched.

        Args:
            layers: predictions of all decoder layers, the last one last.
            classes: int64 [N, Q], the class that each query is conditioned on.
            targets: of N images.
        """
        pairs = [self.matcher.match(layer, classes, targets) for layer in layers]
        matched = sum(len(found) for found in pairs[-1])
        normalizer = mean_over_processes(matched, layers[-1].logits.device)
        losses: dict[str, Tensor] = {}
        for number, (layer, found) in enumerate(zip(layers, pairs, strict=True)):
            suffix = "" if number == len(layers) - 1 else f"_{number}"
            for name, value in self.of_layer(layer, found, targets).items():
                losses[f"loss_{name}{suffix}"] = getattr(self.weights, name) * value / normalizer
        return losses, matched / max(sum(len(target.labels) for target in targets), 1)

    def of_layer(self, layer: LayerOutput, pairs: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the unweighted sums of one layer by name; `pairs` (query, object) of each image."""
        positive = torch.zeros_like(layer.logits)
        for row, found in zip(positive, pairs, strict=True):
            row[found[:, 0]] = 1
        objectness = sigmoid_focal_loss(
            layer.logits, positive, alpha=self.matcher.alpha, gamma=self.matcher.gamma, reduction="sum"
        )
        boxes = torch.cat([own[found[:, 0]] for own, found in zip(layer.boxes, pairs, strict=True)])
        wanted = torch.cat([target.boxes[found[:, 1]] for target, found in zip(targets, pairs, strict=True)])
        corners = (box_convert(part, "cxcywh", "xyxy") for part in (boxes, wanted))
        giou = generalized_box_iou_loss(*corners, reduction="sum")
        return {"objectness": objectness, "l1": (boxes - wanted).abs().sum(), "giou": giou}
