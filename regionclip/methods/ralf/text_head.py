"""Text head of DetPro: cosines of projected features with class embeddings and a learned background (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.modeling.detector import Classifier
from regionclip.modeling.gathering import mean_over_processes


@dataclass(frozen=True)
class EnsembleScores:
    """How the softmax of both heads are fused."""

    temperature: float = 0.007
    """Divides the cosines in evaluation."""
    exponent: float = 1 / 3
    """Of the second head for base classes, and of the first for novel ones."""


class CosineOutputLayers(nn.Module):
    """Projection into CLIP's space, background embedding, and class-agnostic box deltas."""

    def __init__(self, channels: int, dim: int, box_weights: Sequence[float], temperature: float) -> None:
        """Create the layers.

        Args:
            channels: C, of region features.
            dim: width D of the class embeddings.
            box_weights: of the box deltas.
            temperature: divides the cosines in training.
        """
        super().__init__()
        self.projection = nn.Linear(channels, dim)
        self.bg_embedding = nn.Linear(1, dim)
        for layer in (self.projection, self.bg_embedding):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.bbox_pred = nn.Linear(channels, 4)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)
        self.transform = Box2BoxTransform(weights=tuple(box_weights))
        self.temperature = temperature

    @property
    def background(self) -> Tensor:
        """Unit embedding [D] of background."""
        return F.normalize(self.bg_embedding.weight[:, 0] + self.bg_embedding.bias, dim=0)

    def cosines(self, features: Tensor, classifier: Classifier) -> Tensor:
        """Return cosines [R, K + B + 1] of region features [R, C]; the last column is the learned background."""
        unit = F.normalize(self.projection(features), dim=1)
        return torch.cat([classifier(unit), (unit @ self.background)[:, None]], dim=1)

    def losses(
        self, features: Tensor, labels: Tensor, boxes: Tensor, objects: Tensor, classifier: Classifier
    ) -> dict[str, Tensor]:
        """Return the cross entropy of base classes, and the L1 loss of the deltas of object regions.

        Both are means over the regions of the batch of all processes.

        Args:
            features: float [R, C], of sampled regions.
            labels: int64 [R]; the number of classes is background.
            boxes: float [R, 4], xyxy in pixels of the network input.
            objects: float [R, 4], of the matched objects; arbitrary for background.
            classifier: of the base classes.
        """
        regions = mean_over_processes(len(labels), labels.device)
        logits = self.cosines(features, classifier) / self.temperature
        positive = (labels < classifier.classes).nonzero()[:, 0]
        wanted = self.transform.get_deltas(boxes[positive], objects[positive])
        difference = (self.bbox_pred(features[positive]) - wanted).abs().sum()
        return {
            "loss_cls": F.cross_entropy(logits, labels, reduction="sum") / regions,
            "loss_box_reg": difference / regions,
        }


def fuse_heads(text: Tensor, image: Tensor, novel: Tensor, scores: EnsembleScores) -> Tensor:
    """Return the scores [R, K + 1] of both heads: a geometric mean, in which novel classes trust the second head more.

    That of background is 0, as the second head does not know it.

    Args:
        text: cosines [R, K + B + 1] of the first head, background last.
        image: cosines [R, K + B] of the second head, which knows no background.
        novel: bool [K].
        scores: temperature and exponent.
    """
    classes = len(novel)
    of_text, of_image = ((cosines / scores.temperature).softmax(dim=1) for cosines in (text, image))
    share = torch.where(novel, 1 - scores.exponent, scores.exponent)
    fused = of_text[:, :classes] ** (1 - share) * of_image[:, :classes] ** share
    return F.pad(fused, (0, 1))
