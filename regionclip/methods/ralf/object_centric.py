"""Object-Centric-OVD (Rasheed et al., 2022), which RALF also builds on: for inference with its published checkpoints.

A Faster R-CNN whose classifier adds two projections of a region: a distilled linear layer, adapted by a weight transfer
function, and a residual network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_roi_heads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.engine.class_names import build_classes
from regionclip.modeling.detector import Classifier, Selection
from regionclip.modeling.poolers import use_own_roi_align
from regionclip.modeling.postprocess import build_detection_selector
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.two_stage_detector import TwoStageDetector

SLOPE = 0.1
"""Of the leaky ReLUs."""


class WeightTransferClassifier(nn.Module):
    """Maps region features to CLIP's space."""

    def __init__(self, channels: int, dim: int, transfer_channels: int, residual_channels: int) -> None:
        """Create the layers.

        Args:
            channels: C, of region features.
            dim: width D of the class embeddings.
            transfer_channels: hidden width of the weight transfer function.
            residual_channels: hidden width of the residual network.
        """
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.fc1, self.fc2 = nn.Linear(channels, transfer_channels), nn.Linear(transfer_channels, channels)
        self.fc3, self.fc4 = nn.Linear(channels, residual_channels), nn.Linear(residual_channels, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings [R, D], not normalized, of region features [R, C]."""
        transferred = self.fc2(F.leaky_relu(self.fc1(self.linear.weight), SLOPE))  # [D, C]
        return self.fc4(F.leaky_relu(self.fc3(features), SLOPE)) + features @ transferred.T


class ObjectCentricPredictor(nn.Module):
    """Classifier and class-agnostic box deltas."""

    def __init__(self, cls_score: WeightTransferClassifier, channels: int, box_weights: Sequence[float]) -> None:
        """Create the layers for region features of `channels`."""
        super().__init__()
        self.cls_score = cls_score
        self.bbox_pred = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4))
        self.transform = Box2BoxTransform(weights=tuple(box_weights))


def _encode_c4(heads: Any, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
    return heads._shared_roi_transform([maps[name] for name in heads.in_features], [boxes]).mean(dim=(2, 3))


def _encode_fpn(heads: Any, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
    return heads.box_head(heads.box_pooler([maps[name] for name in heads.box_in_features], [boxes]))


HEADS: dict[str, Callable[[Any, dict[str, Tensor], Boxes], Tensor]] = {
    "Res5ROIHeads": _encode_c4,
    "StandardROIHeads": _encode_fpn,
}
"""Values of MODEL.ROI_HEADS.NAME: functions from the heads, maps and boxes of an image to region features [R, C]."""


class ObjectCentricOVD(TwoStageDetector):
    """Detector with sigmoid scores, in evaluation mode only."""

    @configurable
    def __init__(
        self,
        *,
        encode: Callable[[Any, dict[str, Tensor], Boxes], Tensor],
        temperature: float,
        bias: float,
        **parts: Any,
    ) -> None:
        """Create a detector.

        Args:
            encode: computes region features [R, C] by the RoI heads.
            temperature: divides the cosines (CLSS_TEMP).
            bias: added to the logits.
            parts: those of `TwoStageDetector`; its heads are one of Detectron2's `HEADS`.
        """
        super().__init__(**parts)
        self._encode, self.temperature, self.bias = encode, temperature, bias
        self.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        parts, heads, ralf = cls.shared_parts(cfg), cfg.MODEL.ROI_HEADS, cfg.MODEL.RALF
        roi_heads, channels = _build_heads(cfg, parts["backbone"])
        hidden = ralf.TRANSFER_CHANNELS or channels, ralf.RESIDUAL_CHANNELS or channels
        classifier = WeightTransferClassifier(channels, cfg.MODEL.CLIP.TEXT_EMB_DIM, *hidden)
        return {
            **parts,
            "roi_heads": roi_heads,
            "encode": HEADS[heads.NAME],
            "predictor": ObjectCentricPredictor(classifier, channels, cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
            "selector": build_detection_selector(cfg),
            "temperature": cfg.MODEL.CLIP.CLSS_TEMP,
            "bias": ralf.CLASS_BIAS,
            "classes": build_classes(cfg, "TEXT_EMB_PATH"),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
        }

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode: nothing is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[ImageInput]) -> list[Any]:
        """Return the detections of images: `image`, uint8 [3, H, W] in INPUT.FORMAT, with `height` and `width`."""
        found = [
            self.roi_heads.forward_with_given_boxes(encoding.maps, [self.detect(encoding, None, Selection())])[0]
            for encoding in self.encode_images(batched_inputs)
        ]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    @property
    def feature_dim(self) -> int:
        """Number C of region features."""
        return int(self.roi_heads.box_predictor.cls_score.linear.in_features)

    def encode_boxes(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """Return [R, D + C] of boxes of one image on its maps: embeddings, not normalized, and region features."""
        features = self._encode(self.roi_heads, maps, boxes)
        return torch.cat([self.roi_heads.box_predictor.cls_score(features), features], dim=1)

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return the sigmoid [R, K + 1] of each class; the last column is 1 minus the highest. RAF re-weights it."""
        known = classifier or self.configured_classes()
        augmented = self.raf.split(embeddings)[1]
        unit = F.normalize(self.columns(embeddings)[0], dim=1)
        found = (known(unit)[:, : known.classes] / self.temperature + self.bias).sigmoid()
        return self.raf.fuse(torch.cat([found, 1 - found.amax(dim=1, keepdim=True)], dim=1), augmented, known)


def _build_heads(cfg: CfgNode, backbone: Backbone) -> tuple[nn.Module, int]:
    """Return Detectron2's RoI heads, and the number of channels of their region features."""
    heads: Any = build_roi_heads(cfg, backbone.output_shape())
    use_own_roi_align(heads.pooler if hasattr(heads, "pooler") else heads.box_pooler)
    layer = heads.box_predictor.bbox_pred
    return heads, int(layer.in_features)
