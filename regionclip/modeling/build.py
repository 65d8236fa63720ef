"""Build a model from a config."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from regionclip.config.resolve import clip_architecture, uses_clip_backbone
from regionclip.modeling.fixed_statistics import fix_statistics

_ON_CLIP = {"GeneralizedRCNN": "CLIPGeneralizedRCNN", "ProposalNetwork": "CLIPProposalNetwork"}
"""CLIP variants of Detectron2's meta-architectures, used when the backbone is CLIP."""


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of `cfg.MODEL.META_ARCHITECTURE` on `cfg.MODEL.DEVICE`, without loading weights.

    Upstream's configs name `GeneralizedRCNN` for CLIP backbones too; these get the CLIP variant, and
    Detectron2's own class is not patched.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if uses_clip_backbone(cfg):
        name = _ON_CLIP.get(name, name)
    model = META_ARCH_REGISTRY.get(name)(cfg)
    if cfg.MODEL.RESNETS.NORM_EVAL:
        fix_statistics(getattr(model.backbone, "bottom_up", model.backbone))  # a pyramid on it keeps its own
    return model.to(torch.device(cfg.MODEL.DEVICE))


def build_text_encoder_if_wanted(cfg: CfgNode) -> nn.Module | None:
    """Build the text encoder (`lang_encoder`) of MODEL.CLIP.GET_CONCEPT_EMB; None if it is not set."""
    if not cfg.MODEL.CLIP.GET_CONCEPT_EMB:
        return None
    from regionclip.clip.text_encoder import TextEncoder  # imports open_clip

    return TextEncoder(clip_architecture(cfg))
