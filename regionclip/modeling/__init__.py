"""Detectron2's registries meet CLIP: importing this package registers everything that configs name."""

from regionclip.modeling.backbone import CLIPResNetBackbone
from regionclip.modeling.box_predictor import CLIPOutputLayers
from regionclip.modeling.build import build_model
from regionclip.modeling.clip_rcnn import CLIPFastRCNN
from regionclip.modeling.generalized_rcnn import CLIPGeneralizedRCNN, CLIPProposalNetwork
from regionclip.modeling.image_text import ImageTextCLIP
from regionclip.modeling.prepared import prepare_as_configured, prepare_for_inference
from regionclip.modeling.pretrain_rcnn import PretrainFastRCNN, PretrainRes5ROIHeads
from regionclip.modeling.roi_heads import CLIPRes5ROIHeads, CLIPStandardROIHeads
from regionclip.modeling.transformer_roi_heads import CLIPTransformerROIHeads

__all__ = [
    "CLIPFastRCNN",
    "CLIPGeneralizedRCNN",
    "CLIPOutputLayers",
    "CLIPProposalNetwork",
    "CLIPRes5ROIHeads",
    "CLIPResNetBackbone",
    "CLIPStandardROIHeads",
    "CLIPTransformerROIHeads",
    "ImageTextCLIP",
    "PretrainFastRCNN",
    "PretrainRes5ROIHeads",
    "build_model",
    "prepare_as_configured",
    "prepare_for_inference",
]
