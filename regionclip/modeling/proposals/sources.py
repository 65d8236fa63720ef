"""Proposal sources behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.structures import Instances
from torch import nn

from regionclip.config.loading import load_config
from regionclip.errors import user_error
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.rpn import ExactRPN
from regionclip.records import MappedImage

ImageInput = MappedImage
"""What a dataset mapper returns for one image."""

GT_OBJECTNESS = 1.0
"""Objectness logit that upstream gives ground-truth boxes in training."""


class ProposalSource(Protocol):
    """Source of the boxes that the RoI head classifies."""

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return for each image `proposal_boxes` [R, 4], xyxy in pixels of the network input.

        RPN proposals also have `objectness_logits` [R], the raw logits in descending order.
        """
        ...


class GroundTruthProposals:
    """Ground-truth boxes as proposals: evaluates classification without localization."""

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the ground-truth boxes; raises `UserError` for an image without `instances`."""
        proposals = []
        for image in inputs:
            if "instances" not in image:
                raise user_error(
                    "MODEL.CLIP.CROP_REGION_TYPE GT",
                    "images with annotated boxes",
                    f"no annotation for {image.get('file_name', 'an image')}",
                    "use MODEL.CLIP.CROP_REGION_TYPE RPN for images without annotations",
                )
            target = image["instances"]
            proposal = Instances(target.image_size, proposal_boxes=target.gt_boxes.clone())
            proposal.objectness_logits = torch.full((len(target),), GT_OBJECTNESS)
            proposals.append(proposal.to(device))
        return proposals


class RecordProposals:
    """The `proposals` that the mapper made of the boxes in an image's record: those of PROPOSAL_FILE."""

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the boxes of each image; raises `UserError` for an image without `proposals`."""
        for image in inputs:
            if "proposals" not in image:
                actual, fix = f"none with {image.get('file_name', 'an image')}", "evaluate a dataset, or give boxes"
                raise user_error("MODEL.CLIP.CROP_REGION_TYPE FILE", "boxes from PROPOSAL_FILE", actual, fix)
        return [image["proposals"].to(device) for image in inputs]


class NoProposals:
    """No proposals: the detector only embeds and classifies user boxes."""

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Raise a `UserError`."""
        fix = "give boxes, or use MODEL.CLIP.CROP_REGION_TYPE RPN"
        raise user_error("MODEL.CLIP.CROP_REGION_TYPE NONE", "user boxes", "none to classify", fix)


class RPNProposals:
    """Proposals of a frozen RPN with its own backbone.

    References the modules without registering them: the meta-architecture registers them under the
    published names `offline_backbone` and `offline_proposal_generator`.
    """

    def __init__(self, preprocessor: ImagePreprocessor, backbone: nn.Module, proposal_generator: nn.Module) -> None:
        """Create a source from the modules that `build_offline_rpn` builds."""
        self.preprocessor = preprocessor
        self.backbone = backbone
        self.proposal_generator = proposal_generator

    @torch.no_grad()
    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the proposals, clipped to the image, at most POST_NMS_TOPK_TEST per image."""
        images = self.preprocessor([image["image"] for image in inputs])
        proposals, _ = self.proposal_generator(images, self.backbone(images.tensor), None)
        return proposals


def offline_rpn_config(cfg: CfgNode, post_nms_topk: int | None = None) -> CfgNode:
    """Return the config of the RPN: OFFLINE_RPN_CONFIG with the overrides of MODEL.CLIP.

    Args:
        cfg: config of the detector.
        post_nms_topk: proposals per image; None takes OFFLINE_RPN_POST_NMS_TOPK_TEST.
    """
    clip = cfg.MODEL.CLIP
    rpn_cfg = load_config(clip.OFFLINE_RPN_CONFIG)
    rpn_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    if rpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        rpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = ExactRPN.__name__
    if clip.OFFLINE_RPN_LSJ_PRETRAINED:
        rpn_cfg.MODEL.BACKBONE.FREEZE_AT = 0
        rpn_cfg.MODEL.RESNETS.NORM = "SyncBN"
        rpn_cfg.MODEL.FPN.NORM = "SyncBN"
        rpn_cfg.MODEL.RPN.CONV_DIMS = [-1, -1]
    if clip.OFFLINE_RPN_NMS_THRESH is not None:
        rpn_cfg.MODEL.RPN.NMS_THRESH = clip.OFFLINE_RPN_NMS_THRESH
    limit = post_nms_topk or clip.OFFLINE_RPN_POST_NMS_TOPK_TEST
    if limit:
        rpn_cfg.MODEL.RPN.POST_NMS_TOPK_TEST = limit
    return rpn_cfg


def build_offline_rpn(cfg: CfgNode, post_nms_topk: int | None = None) -> RPNProposals:
    """Build the frozen RPN of `offline_rpn_config`, in evaluation mode."""
    rpn_cfg = offline_rpn_config(cfg, post_nms_topk)
    backbone = build_backbone(rpn_cfg)
    proposal_generator = build_proposal_generator(rpn_cfg, backbone.output_shape())
    for module in (backbone, proposal_generator):
        module.requires_grad_(False).eval()
    preprocessor = build_preprocessor(
        rpn_cfg, backbone.size_divisibility, flip_channels=rpn_cfg.INPUT.FORMAT != cfg.INPUT.FORMAT
    )
    return RPNProposals(preprocessor, backbone, proposal_generator)
