"""RoI head of the transformer detectors: mean over a region, projection, text encoder at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.errors import user_error
from regionclip.methods.regionclip.box_predictor import CLIPOutputLayers, Predictions
from regionclip.modeling.backbones.transformers import DenseImageEncoder
from regionclip.modeling.poolers import build_pooler


class TextEncoderOutputLayers(CLIPOutputLayers):
    """Box predictor with its own text encoder; there is no background class."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, causal_text: bool, **kwargs: Any) -> None:
        """Create a predictor; call `set_classes` before the first forward pass."""
        from regionclip.clip.region_text_encoder import RegionTextEncoder  # imports open_clip

        super().__init__(input_shape, **kwargs)
        del self.cls_score
        # No published checkpoint has box deltas: proposals are not refined.
        nn.init.zeros_(self.bbox_pred.weight)
        nn.init.zeros_(self.bbox_pred.bias)
        self.lang_encoder = RegionTextEncoder(causal=causal_text)
        self.register_buffer("class_embeddings", None, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().from_config(cfg, input_shape), "causal_text": cfg.MODEL.TEXT.AUTOGRESSIVE}

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Box deltas, which no published checkpoint has."""
        return ("bbox_pred.weight", "bbox_pred.bias")

    def set_classes(self, names: Sequence[str]) -> None:
        """Embed the class names that later forward passes score regions against."""
        self.class_embeddings = self.lang_encoder.embed_classes(names)

    def classify(self, vectors: Tensor, embeddings: Tensor) -> Predictions:
        """Return logits [R, K] without background for embeddings [R, D], and box deltas [R, 4] for vectors [R, C]."""
        if self.class_embeddings is None:
            raise RuntimeError("the detector knows no words yet: call set_classes(names) first")
        unit = F.normalize(embeddings, dim=1)
        return self.lang_encoder.logit_scale.exp() * unit @ self.class_embeddings.T, self.bbox_pred(vectors)

    def predict_probs(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Return probabilities [R, K + 1] for each image; the background, which is not modeled, gets 0."""
        probabilities = F.pad(predictions[0].softmax(dim=-1), (0, 1))
        return probabilities.split([len(p) for p in proposals])


class CLIPTransformerROIHeads(ROIHeads):
    """RoIAlign on one map, mean, projection into the joint space, box predictor; inference only."""

    @configurable
    def __init__(self, *, in_feature: str, pooler: ROIPooler, box_predictor: CLIPOutputLayers, **kwargs: Any) -> None:
        """Create a head; call `borrow` before the first forward pass."""
        super().__init__(**kwargs)
        self.in_features = [in_feature]
        self.pooler = pooler
        self.box_predictor = box_predictor
        self._owner: tuple[nn.Module, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shape = input_shape[name]
        return {
            **super().from_config(cfg),
            "in_feature": name,
            "pooler": build_pooler(cfg.MODEL.ROI_BOX_HEAD, [shape.stride]),
            "box_predictor": TextEncoderOutputLayers(cfg, ShapeSpec(channels=shape.channels)),
        }

    def borrow(self, owner: nn.Module) -> None:
        """Use the region pooling of `owner.backbone`, and `owner.image_projection` [C, D].

        Both are read at each call, since loading a checkpoint may replace the parameter.
        """
        self._owner = (owner,)  # in a tuple, so that it is not registered as a submodule

    def set_classes(self, names: Sequence[str]) -> None:
        """Embed the class names that regions are scored against."""
        self.box_predictor.set_classes(names)

    def encode(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings [R, D] of the boxes of each image, not normalized."""
        return self._region_vectors(features, boxes) @ self._projection

    def forward(
        self,
        images: ImageList | None,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return (detections, {}).

        Raises:
            UserError: in training mode; the published system does not train these encoders.
        """
        if self.training:
            fix = "evaluate with --eval-only, or train with CLIPRes5ROIHeads"
            raise user_error("MODEL.ROI_HEADS.NAME CLIPTransformerROIHeads", "inference", "training", fix)
        vectors = self._region_vectors(features, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor.classify(vectors, vectors @ self._projection)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return detections, {}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Return the instances unchanged: there is no mask head."""
        return instances

    def _region_vectors(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the pooled vectors [R, C] of the boxes of each image."""
        cells = self.pooler([features[name] for name in self.in_features], list(boxes))
        return cast(DenseImageEncoder, self._borrowed.backbone).pool_region(cells)

    @property
    def _projection(self) -> Tensor:
        return cast(Tensor, self._borrowed.image_projection)

    @property
    def _borrowed(self) -> nn.Module:
        if not self._owner:
            raise RuntimeError(
                "the head has no image encoder yet: build the detector with regionclip.modeling.build.build_model(cfg)"
            )
        return self._owner[0]


def make_projection(channels: int, dim: int) -> nn.Parameter:
    """Return a random image projection [channels, dim] that preserves the scale of its input."""
    return nn.Parameter(torch.randn(channels, dim) * channels**-0.5)
