"""The region head that both stages share: RoIAlign, CLIP's last stage, the attention pool with the region prompt."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.resnet import ModifiedResNet
from regionclip.config.resolve import clip_architecture
from regionclip.methods.cora.pooling import cheap_embeddings
from regionclip.modeling.detector import Classifier
from regionclip.modeling.heads.region_encoder import BorrowsLastStage


class RegionPromptHead(BorrowsLastStage, nn.Module):
    """Embeds and classifies regions given in cells of `res4`; owns no weights: the prompt is in the attention pool."""

    @configurable
    def __init__(self, *, grid: int) -> None:
        """Create a head for an attention pool of `grid` x `grid` cells."""
        super().__init__()
        self.in_features = ["res4"]
        self.pooler = ROIPooler(2 * grid, scales=(1.0,), sampling_ratio=0, pooler_type="ROIAlignV2")
        self._attention_pool: tuple[AttentionPool2d, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"grid": clip_architecture(cfg).attention_grid}

    def borrow(self, image_encoder: ModifiedResNet) -> None:
        """Use `layer4` and the attention pool of the backbone's image encoder."""
        super().borrow(image_encoder)
        if isinstance(image_encoder.attnpool, AttentionPool2d):  # a folded one has no projections any more
            self._attention_pool = (image_encoder.attnpool,)  # in a tuple: it belongs to the backbone

    def embed_cheaply(self, layer4: Tensor, boxes: list[Tensor], *, with_mean_token: bool) -> Tensor:
        """Return the embeddings [R, D] of boxes in cells of the map `layer4`; see `cheap_embeddings`."""
        (pool,) = self._attention_pool
        return cheap_embeddings(pool, layer4, boxes, with_mean_token=with_mean_token)


def class_probabilities(embeddings: Tensor, classifier: Classifier, temperature: float) -> Tensor:
    """Return the softmax [R, K + 1] over all classes and one with cosine 0; the last column has what is not reported.

    Args:
        embeddings: region embeddings [R, D].
        classifier: of K classes, and perhaps background classes.
        temperature: divides the cosines.
    """
    cosines = classifier(F.normalize(embeddings, dim=1))
    logits = F.pad(cosines, (0, 1)) / temperature
    probabilities = logits.softmax(dim=1)
    classes = classifier.classes
    rest = probabilities[:, classes:].sum(dim=1, keepdim=True)
    return torch.cat([probabilities[:, :classes], rest], dim=1)
