"""A Faster R-CNN on an FPN whose second box head is distilled from CLIP on crops (ViLD-ensemble)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from regionclip.modeling.heads.ensemble import EnsembleROIHeads
from regionclip.modeling.proposals.generated_boxes import image_generator
from regionclip.modeling.proposals.oln.localizer import apply_deltas
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.two_stage_detector import TwoStageDetector


class EnsembleDetector(TwoStageDetector):
    """The part of such detectors that does not depend on how the first head classifies."""

    roi_heads: EnsembleROIHeads

    @staticmethod
    def shared_parts(cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor but for predictor, selector and classes."""
        parts = TwoStageDetector.shared_parts(cfg)
        return {**parts, "roi_heads": EnsembleROIHeads(cfg, parts["backbone"].output_shape())}

    @property
    def feature_dim(self) -> int:
        """Width C of the first head's features."""
        return self.roi_heads.feature_dim

    def encode_boxes(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """Return [R, D + C] of boxes of one image on its maps: distilled embeddings, and the first head's features."""
        return self.roi_heads.encode(maps, [boxes])

    def _apply_deltas(self, transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
        return apply_deltas(transform, deltas, boxes)

    def preprocess(self, inputs: Sequence[ImageInput]) -> tuple[ImageList, list[Instances]]:
        """Return the images of a training batch, and their ground truth."""
        images = self.preprocessor([image["image"] for image in inputs])
        return images, [image["instances"].to(self.device) for image in inputs]

    def distillation_loss(self, features: dict[str, Tensor], inputs: Sequence[ImageInput]) -> Tensor:
        """Return the mean L1 distance of the second head to the stored embeddings of the images' `regions`."""
        regions = [image["regions"].to(self.device) for image in inputs]
        boxes: list[Boxes] = [part.proposal_boxes for part in regions]
        targets = [F.normalize(part.embeddings.float(), dim=1) for part in regions]
        return self.roi_heads.distillation_loss(features, boxes, targets)


def region_generators(inputs: Sequence[ImageInput]) -> list[torch.Generator]:
    """Return the generators of random numbers that sample the regions of each image."""
    return [image_generator(image) for image in inputs]
