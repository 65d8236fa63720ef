"""Teachers of the pretraining: how regions are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor

from regionclip.methods.regionclip.resolve import teacher_architecture
from regionclip.modeling.backbones.clip_resnet import CLIPResNetBackbone, build_clip_resnet_backbone
from regionclip.modeling.heads.region_encoder import RegionEncoder
from regionclip.modeling.poolers import build_pooler
from regionclip.ops import RoIAlign


class Teacher(Protocol):
    """A frozen image encoder that embeds regions."""

    backbone: CLIPResNetBackbone

    def embed(self, images: Tensor, regions: Sequence[Boxes]) -> Tensor:
        """Return embeddings [R, D], not normalized, of all regions of normalized images [N, 3, H, W]."""
        ...


class AligningTeacher:
    """Embeds regions by RoIAlign on the feature map of the whole image, like the student (section 3.3 of the paper)."""

    def __init__(self, backbone: CLIPResNetBackbone, feature: str, pooler: ROIPooler) -> None:
        """Create a teacher that pools from the feature map named `feature`."""
        self.backbone, self.feature = backbone, feature
        self.encoder = RegionEncoder(pooler, backbone.stages["res5"], backbone.attnpool)

    def embed(self, images: Tensor, regions: Sequence[Boxes]) -> Tensor:
        """Return embeddings [R, D], not normalized, of all regions of normalized images [N, 3, H, W]."""
        maps = [self.backbone(images)[self.feature]]
        return self.encoder.embed(self.encoder.region_maps(maps, regions))


class CroppingTeacher:
    """Embeds each region as a separate image, at CLIP's training resolution.

    A CLIP trained on whole images classifies a cropped object more reliably than the same object in the
    feature map of a larger image, where context leaks into its features and its size varies.
    """

    def __init__(self, backbone: CLIPResNetBackbone, resolution: int) -> None:
        """Create a teacher that resizes crops to `resolution` pixels per side."""
        self.backbone = backbone
        # Sampling points are at most a pixel apart, so that large regions are averaged, not subsampled.
        self.cut_out = RoIAlign(resolution, spatial_scale=1.0, sampling_ratio=0, aligned=True)

    def embed(self, images: Tensor, regions: Sequence[Boxes]) -> Tensor:
        """Return embeddings [R, D], not normalized, of all regions of normalized images [N, 3, H, W]."""
        squares = [Boxes(_squares(boxes.tensor)) for boxes in regions]
        return self.backbone.embed_images(self.cut_out(images, convert_boxes_to_pooler_format(squares)))


def _squares(boxes: Tensor) -> Tensor:
    """Return squares around boxes [R, 4], xyxy, so that crops keep the aspect ratio."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat([centers - half, centers + half], dim=1)


def build_teacher(cfg: CfgNode) -> Teacher:
    """Return the teacher, with the student's normalization layers and maps (TEACHER_ARCHITECTURE, TEACHER_REGIONS)."""
    teacher_cfg = cfg.clone()
    teacher_cfg.defrost()
    teacher_cfg.MODEL.CLIP.ARCHITECTURE = cfg.MODEL.CLIP.TEACHER_ARCHITECTURE
    teacher_cfg.MODEL.RESNETS.DEPTH = cfg.MODEL.CLIP.TEACHER_RESNETS_DEPTH
    teacher_cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = cfg.MODEL.CLIP.TEACHER_POOLER_RESOLUTION
    backbone = build_clip_resnet_backbone(teacher_cfg, None)
    backbone.requires_grad_(False)
    if cfg.MODEL.CLIP.TEACHER_REGIONS == "cropped":
        return CroppingTeacher(backbone, teacher_architecture(cfg).image_resolution)
    (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
    pooler = build_pooler(teacher_cfg.MODEL.ROI_BOX_HEAD, [backbone.output_shape()[name].stride])
    return AligningTeacher(backbone, name, pooler)
