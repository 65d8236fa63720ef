"""RoI heads that share CLIP's last stage and attention pool with the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from regionclip.clip.resnet import ModifiedResNet
from regionclip.config.resolve import clip_architecture
from regionclip.methods.regionclip.box_predictor import CLIPOutputLayers, build_box_predictor
from regionclip.modeling.heads.region_encoder import BorrowsLastStage, EncodeBoxes
from regionclip.modeling.inference.early_end import LazyRegions
from regionclip.modeling.poolers import build_pooler, use_own_roi_align
from regionclip.modeling.region_encoding import FeatureMaps, each_image


class ForegroundSampling(ROIHeads):
    """Sampling of training proposals, optionally foreground only (ONLY_SAMPLE_FG_PROPOSALS)."""

    only_foreground = False
    _seeds: Iterator[int] = iter(())

    def seed_sampling(self, seeds: Iterable[int]) -> None:
        """Sample the proposals of the next images with one seed per image, independent of the global random state."""
        self._seeds = iter(seeds)

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        seed = next(self._seeds, None)
        if seed is None:
            return self._draw(matched_idxs, matched_labels, gt_classes)
        with torch.random.fork_rng([matched_idxs.device] if matched_idxs.is_cuda else []):
            torch.manual_seed(seed)
            return self._draw(matched_idxs, matched_labels, gt_classes)

    def _draw(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
        if not self.only_foreground:
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        if not len(gt_classes):
            # Upstream keeps one region so that the image still contributes: the first, as background.
            first = matched_idxs.new_zeros(min(1, len(matched_idxs)))
            return first, torch.full_like(first, self.num_classes)
        labels = gt_classes[matched_idxs]
        foreground = (matched_labels == 1).nonzero()[:, 0]
        limit = int(self.batch_size_per_image * self.positive_fraction)
        chosen = foreground[torch.randperm(len(foreground), device=foreground.device)[:limit]]
        return chosen, labels[chosen]


class CLIPRes5ROIHeads(BorrowsLastStage, ForegroundSampling):
    """C4 head: RoIAlign on `res4`, CLIP's `layer4`, attention pool (or mean), predictor."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        box_predictor: CLIPOutputLayers,
        mask_head: nn.Module | None = None,
        only_foreground: bool = False,
        **kwargs: Any,
    ) -> None:
        """Create a head; call `borrow` before the first forward pass.

        Args:
            in_features: name of the single feature map to pool from.
            pooler: RoIAlign.
            box_predictor: class logits and box deltas.
            mask_head: None without masks.
            only_foreground: sample only foreground regions in training.
            kwargs: as for Detectron2's `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.box_predictor = box_predictor
        self.mask_head = mask_head
        self.only_foreground = only_foreground

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        res5_channels = clip_architecture(cfg).stage_channels["res5"]
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        mask_shape = ShapeSpec(channels=res5_channels, width=resolution, height=resolution)
        return {
            **super().from_config(cfg),
            "in_features": [name],
            "pooler": build_pooler(cfg.MODEL.ROI_BOX_HEAD, [input_shape[name].stride]),
            "box_predictor": build_box_predictor(cfg, ShapeSpec(channels=res5_channels)),
            "mask_head": build_mask_head(cfg, mask_shape) if cfg.MODEL.MASK_ON else None,
            "only_foreground": cfg.MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS,
        }

    def forward(
        self,
        images: ImageList | None,
        features: FeatureMaps,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return (proposals, losses) in training mode and (detections, {}) in evaluation mode."""
        if self.training:
            if targets is None:
                raise ValueError("training needs ground truth: the inputs have no 'instances'")
            return self._training_losses(features, self.label_and_sample_proposals(proposals, targets))
        proposals = self.box_predictor.scorable(proposals, self.box_predictor.selector.score_threshold)
        detections = [
            self.box_predictor.detect(LazyRegions(proposal, partial(self.encoder_of_image, maps)))
            for maps, proposal in zip(each_image(features), proposals, strict=True)
        ]
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(self, features: FeatureMaps, instances: list[Instances]) -> list[Instances]:
        """Add `pred_masks` to instances with `pred_boxes` and `pred_classes`; no change without a mask head."""
        if self.mask_head is None:
            return instances
        region_maps = self.encoder.region_maps(self.pooled_features(features), [i.pred_boxes for i in instances])
        return self.mask_head(region_maps, instances)

    def _training_losses(
        self, features: FeatureMaps, proposals: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        region_maps = self.encoder.region_maps(self.pooled_features(features), [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.encoder.embed(region_maps))
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_head is not None:
            proposals, selected = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(region_maps[torch.cat(selected)], proposals))
        return proposals, losses


class CLIPStandardROIHeads(ForegroundSampling, StandardROIHeads):
    """Detectron2's StandardROIHeads; with a text-embedding classifier the attention pool replaces the box head.

    The RoIAlign output goes directly to the attention pool, so the FPN needs as many channels as the
    pool.
    """

    @configurable
    def __init__(self, *, only_foreground: bool = False, **kwargs: Any) -> None:
        """Create a head; `only_foreground` samples no background, `kwargs` as for Detectron2's head."""
        super().__init__(**kwargs)
        self.only_foreground = only_foreground

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().from_config(cfg, input_shape), "only_foreground": cfg.MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        names, box = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        box_head = None
        embedding_shape = ShapeSpec(channels=cfg.MODEL.CLIP.TEXT_EMB_DIM)
        if not cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER:
            side = box.POOLER_RESOLUTION
            channels = input_shape[names[0]].channels
            box_head = build_box_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
            embedding_shape = box_head.output_shape
        return {
            "box_in_features": names,
            "box_pooler": build_pooler(box, [input_shape[name].stride for name in names]),
            "box_head": box_head,
            "box_predictor": build_box_predictor(cfg, embedding_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_mask_head(cfg, input_shape)
        if arguments.get("mask_pooler") is not None:
            use_own_roi_align(arguments["mask_pooler"])
        return arguments

    def encode(self, features: FeatureMaps, boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings [R, D] of the boxes of each image, not normalized."""
        maps = [features[name] for name in self.box_in_features]
        return self.box_head(self.box_pooler(maps, list(boxes)))

    def encoder_of_image(self, features: FeatureMaps, regions: int) -> EncodeBoxes:
        """Return a function that encodes chunks of the boxes of one image, from its maps [1, C, H, W]."""
        return lambda boxes: self.encode(features, [boxes])

    def borrow(self, image_encoder: ModifiedResNet) -> None:
        """Use the attention pool of the image encoder as box head, if there is one."""
        if image_encoder.attnpool is not None:
            # Detectron2 calls this attribute; __dict__ keeps it from being registered as a submodule.
            self._modules.pop("box_head", None)
            self.__dict__["box_head"] = image_encoder.attnpool
