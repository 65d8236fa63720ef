"""Detectron2's meta-architectures on a CLIP backbone."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork

from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.heads.region_encoder import BorrowsLastStage
from regionclip.modeling.preprocessing import pixels_to_unit_range


class CLIPGeneralizedRCNN(GeneralizedRCNN):
    """Faster/Mask R-CNN whose C4 head shares CLIP's last stage; images are scaled to CLIP's pixel range."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        arguments = {**super().from_config(cfg), **_pixel_statistics(cfg)}
        image_encoder = clip_image_encoder(arguments["backbone"])
        if image_encoder is not None and isinstance(arguments["roi_heads"], BorrowsLastStage):
            arguments["roi_heads"].borrow(image_encoder)
        return arguments


class CLIPProposalNetwork(ProposalNetwork):
    """RPN on a CLIP backbone; images are scaled to CLIP's pixel range."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().from_config(cfg), **_pixel_statistics(cfg)}


def _pixel_statistics(cfg: CfgNode) -> dict[str, list[float]]:
    # (x / 255 - mean) / std = (x - 255 mean) / (255 std), so Detectron2's own preprocessing can be used.
    scale = 255.0 if pixels_to_unit_range(cfg) else 1.0
    return {
        "pixel_mean": [value * scale for value in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [value * scale for value in cfg.MODEL.PIXEL_STD],
    }
