"""Two box heads on the same RoIs: one classifies and refines boxes, one is distilled from CLIP (ViLD-ensemble)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, build_mask_head
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from regionclip.modeling.heads.region_sampling import RegionSampler
from regionclip.modeling.losses.pretraining import embedding_distillation
from regionclip.modeling.poolers import build_pooler


@dataclass(frozen=True)
class SampledRegions:
    """Regions of a batch that a head is trained on."""

    boxes: list[Boxes]
    """Of each image."""
    labels: Tensor
    """int64 [R], class indices; the number of classes is background."""
    objects: Tensor
    """float [R, 4], the matched objects; arbitrary for background."""
    matches: list[Tensor]
    """int64 [R_i] of each image, rows of the matched objects; arbitrary for background."""

    @property
    def tensor(self) -> Tensor:
        """The boxes of all images, float [R, 4]."""
        return Boxes.cat(self.boxes).tensor


class EnsembleROIHeads(nn.Module):
    """RoIAlign on the levels of an FPN, and two heads of convolutions and one fully connected layer."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        box_head: FastRCNNConvFCHead,
        distill_box_head: FastRCNNConvFCHead,
        embedding_dim: int,
        matcher: Matcher,
        sampler: RegionSampler,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
    ) -> None:
        """Create the heads; `box_predictor` is set by the detector, which knows its classes.

        Args:
            in_features: names of the feature maps.
            pooler: RoIAlign over their levels.
            box_head: maps RoIs to features [R, C] of classes and boxes.
            distill_box_head: the same for the embedding.
            embedding_dim: width D of CLIP's embeddings.
            matcher: matches regions with objects in training.
            sampler: samples them.
            mask_pooler: RoIAlign of the mask head.
            mask_head: None without masks.
        """
        super().__init__()
        self.in_features, self.pooler = tuple(in_features), pooler
        self.box_head, self.distill_box_head = box_head, distill_box_head
        self.box_predictor: nn.Module | None = None
        # As published: Detectron2 initializes both alike.
        nn.init.xavier_uniform_(box_head.fcs[0].weight)
        distill_box_head.fcs[0].reset_parameters()
        self.distill_projection = nn.Linear(distill_box_head.output_shape.channels, embedding_dim)
        nn.init.xavier_uniform_(self.distill_projection.weight)
        nn.init.zeros_(self.distill_projection.bias)
        self.matcher, self.sampler = matcher, sampler
        self.mask_pooler, self.mask_head = mask_pooler, mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        heads, box, ensemble = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ENSEMBLE
        shapes = [input_shape[name] for name in heads.IN_FEATURES]
        shape = ShapeSpec(channels=shapes[0].channels, height=box.POOLER_RESOLUTION, width=box.POOLER_RESOLUTION)
        limit = ensemble.NEGATIVES_PER_POSITIVE
        return {
            "in_features": heads.IN_FEATURES,
            "pooler": build_pooler(box, [each.stride or 1 for each in shapes]),
            "box_head": FastRCNNConvFCHead(cfg, shape),
            "distill_box_head": FastRCNNConvFCHead(cfg, shape),
            "embedding_dim": cfg.MODEL.CLIP.TEXT_EMB_DIM,
            "matcher": Matcher(
                heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=ensemble.LOW_QUALITY_MATCHES
            ),
            "sampler": RegionSampler(heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, None if limit < 0 else limit),
            **(_mask_parts(cfg, shapes) if cfg.MODEL.MASK_ON else {}),
        }

    @property
    def feature_dim(self) -> int:
        """Width C of the features of classes and boxes."""
        return int(self.box_head.output_shape.channels)

    def pool(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the RoIs [R, C', S, S] of the boxes of each image."""
        return self.pooler([features[name] for name in self.in_features], list(boxes))

    def embed(self, rois: Tensor) -> Tensor:
        """Return region embeddings [R, D], not normalized, of RoIs."""
        return self.distill_projection(self.distill_box_head(rois))

    def encode(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return for the boxes of each image [R, D + C]: the embedding, not normalized, and the box head's features."""
        rois = self.pool(features, boxes)
        return torch.cat([self.embed(rois), self.box_head(rois)], dim=1)

    def mask_losses(
        self, features: dict[str, Tensor], sampled: SampledRegions, targets: Sequence[Instances], classes: int
    ) -> dict[str, Tensor]:
        """Return `loss_mask` of the sampled object regions; nothing without a mask head.

        Args:
            features: maps of the FPN.
            sampled: regions of the batch.
            targets: with `gt_masks`.
            classes: number of classes, the label of background.
        """
        if self.mask_head is None:
            return {}
        counts = [len(boxes) for boxes in sampled.boxes]
        parts = zip(targets, sampled.boxes, sampled.labels.split(counts), sampled.matches, strict=True)
        regions = []
        for target, boxes, labels, matches in parts:
            rows = (labels < classes).nonzero()[:, 0]
            chosen = Instances(target.image_size, proposal_boxes=boxes[rows], gt_classes=labels[rows])
            if len(target):
                chosen.gt_masks = target.gt_masks[matches[rows]]
            regions.append(chosen)
        return self.mask_head(self._pool_masks(features, [part.proposal_boxes for part in regions]), regions)

    def predict_masks(self, features: dict[str, Tensor], found: list[Instances]) -> list[Instances]:
        """Add `pred_masks` to the detections of each image; no change without a mask head."""
        if self.mask_head is None:
            return found
        return self.mask_head(self._pool_masks(features, [part.pred_boxes for part in found]), found)

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        assert self.mask_pooler is not None
        return self.mask_pooler([features[name] for name in self.in_features], boxes)

    def distillation_loss(
        self, features: dict[str, Tensor], regions: Sequence[Boxes], targets: Sequence[Tensor]
    ) -> Tensor:
        """Return the mean L1 distance of regions to CLIP's unit embeddings [R_i, D] of them; zero if there are none."""
        if not any(map(len, regions)):
            # Normalization takes no empty batch, and every process needs a gradient of every weight.
            first, *others = regions
            stand_in = [Boxes(first.tensor.new_tensor([[0.0, 0.0, 1.0, 1.0]])), *others]
            return self.embed(self.pool(features, stand_in)).sum() * 0.0
        return embedding_distillation(self.embed(self.pool(features, regions)), torch.cat(list(targets)))

    @torch.no_grad()
    def sample(
        self,
        proposals: Sequence[Instances],
        targets: Sequence[Instances],
        classes: int,
        generators: Sequence[torch.Generator],
    ) -> SampledRegions:
        """Match and sample the regions of each image; its objects are candidates too.

        Args:
            proposals: with `proposal_boxes`.
            targets: with `gt_boxes` and `gt_classes`.
            classes: number of classes, the label of background.
            generators: of random numbers, one for each image, so that its sample does not depend on the others.
        """
        images = zip(proposals, targets, generators, strict=True)
        parts = [self._sample_image(*image, classes) for image in images]
        boxes, labels, objects, matches = zip(*parts, strict=True)
        return SampledRegions(list(boxes), torch.cat(labels), torch.cat(objects), list(matches))

    def _sample_image(
        self, proposals: Instances, target: Instances, generator: torch.Generator, classes: int
    ) -> tuple[Boxes, Tensor, Tensor, Tensor]:
        candidates = Boxes.cat([target.gt_boxes, proposals.proposal_boxes])
        matched, labels = self.matcher(pairwise_iou(target.gt_boxes, candidates))
        rows = self.sampler(labels == 1, generator)
        if not len(target):
            background = torch.full_like(rows, classes)
            return candidates[rows], background, candidates.tensor[rows], background
        positive = labels[rows] == 1
        own = torch.where(positive, target.gt_classes[matched[rows]], classes)
        return candidates[rows], own, target.gt_boxes.tensor[matched[rows]], matched[rows]


def _mask_parts(cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict[str, Any]:
    mask = cfg.MODEL.ROI_MASK_HEAD
    shape = ShapeSpec(channels=shapes[0].channels, height=mask.POOLER_RESOLUTION, width=mask.POOLER_RESOLUTION)
    pooler = build_pooler(mask, [each.stride or 1 for each in shapes])
    return {"mask_pooler": pooler, "mask_head": build_mask_head(cfg, shape)}
