"""OLN as a proposal generator: its RPN, and a box head that regresses boxes and their IoU (Kim et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from regionclip.modeling.poolers import build_pooler
from regionclip.modeling.proposals.oln.anchors import QUALITIES, Quality
from regionclip.modeling.proposals.oln.rpn import OLNRPN
from regionclip.ops import nms

REGIONS_AT_ONCE = 1000
"""Chunk size of the box head: thousands of unsuppressed regions take much memory."""

MAX_LOG_SCALE = math.log(1000 / 16)
"""Bound of the predicted logarithms of width and height, in both directions."""

_LOGIT_MARGIN = 1e-6


class LocalizationOutputLayers(nn.Module):
    """Class-agnostic box deltas, and the logit of the localization quality."""

    def __init__(self, channels: int) -> None:
        """Create the layers for region features of `channels`."""
        super().__init__()
        self.bbox_pred = nn.Linear(channels, 4)
        self.iou_score = nn.Linear(channels, 1)
        for layer, spread in ((self.bbox_pred, 0.001), (self.iou_score, 0.01)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return deltas [R, 4] and logits [R] of region features [R, C]."""
        return self.bbox_pred(features), self.iou_score(features)[:, 0]


def apply_deltas(transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Return refined boxes [R, 4]; logarithms of the sides are bounded in both directions."""
    clamped = deltas.clone()
    bounds = MAX_LOG_SCALE * deltas.new_tensor(transform.weights[2:])
    clamped[:, 2:] = clamped[:, 2:].clamp(-bounds, bounds)
    return transform.apply_deltas(clamped, boxes)


def quality_score(rpn_logits: Tensor, logits: Tensor) -> Tensor:
    """Return the score of proposals [R]: the geometric mean of the qualities of both stages."""
    return (rpn_logits.sigmoid() * logits.sigmoid()).sqrt()


class LocalizationHead(nn.Module):
    """Second stage of OLN: refines boxes, and regresses the quality of the boxes that it gets."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        head: FastRCNNConvFCHead,
        transform: Box2BoxTransform,
        matcher: Matcher,
        count: int,
        positive_fraction: float,
        quality: Quality,
        quality_weight: float,
    ) -> None:
        """Create a head.

        Args:
            in_features: names of the feature maps.
            pooler: RoIAlign over their levels.
            head: maps RoIs to region features.
            transform: coding of box deltas.
            matcher: labels candidate regions in training.
            count: sampled regions of an image.
            positive_fraction: highest fraction of positive ones.
            quality: target, from sampled box and object.
            quality_weight: of its loss.
        """
        super().__init__()
        self.in_features, self.pooler, self.head = tuple(in_features), pooler, head
        self.predictor = LocalizationOutputLayers(head.output_shape.channels)
        self.transform, self.matcher = transform, matcher
        self.count, self.positive_fraction = count, positive_fraction
        self.quality, self.quality_weight = quality, quality_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        heads, box, oln = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.OLN
        shapes = [input_shape[name] for name in heads.IN_FEATURES]
        side = box.POOLER_RESOLUTION
        return {
            "in_features": heads.IN_FEATURES,
            "pooler": build_pooler(box, [shape.stride or 1 for shape in shapes]),
            "head": FastRCNNConvFCHead(cfg, ShapeSpec(channels=shapes[0].channels, height=side, width=side)),
            "transform": Box2BoxTransform(weights=box.BBOX_REG_WEIGHTS),
            "matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False),
            "count": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "quality": QUALITIES[oln.SCORE_TARGET],
            "quality_weight": oln.SCORE_LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> tuple[Tensor, Tensor]:
        """Return deltas [R, 4] and logits of the quality [R] of the boxes of each image."""
        maps = [features[name] for name in self.in_features]
        return self.predictor(self.head(self.pooler(maps, list(boxes))))

    def refine(self, features: dict[str, Tensor], boxes: Boxes) -> tuple[Boxes, Tensor]:
        """Return refined boxes, and logits of the quality [R], of the boxes of one image."""
        rows = torch.arange(len(boxes), device=boxes.device)
        parts = [self(features, [boxes[chunk]]) for chunk in rows.split(REGIONS_AT_ONCE)]
        deltas, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return Boxes(apply_deltas(self.transform, deltas, boxes.tensor)), logits

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Return the L1 losses of deltas and qualities of positive regions, divided by all sampled regions."""
        sampled = [self._sample(*pair) for pair in zip(proposals, targets, strict=True)]
        regions, objects, positives = zip(*sampled, strict=True)
        deltas, logits = self(features, regions)
        positive = torch.cat(positives)
        boxes, truth = cat([part.tensor for part in regions])[positive], torch.cat(objects)[positive]
        qualities = self.quality(boxes, truth)
        wanted = self.transform.get_deltas(boxes, truth)
        divisor = max(len(positive), 1)
        return {
            "loss_oln_box": (deltas[positive] - wanted).abs().sum() / divisor,
            "loss_oln_quality": self.quality_weight * (logits[positive].sigmoid() - qualities).abs().sum() / divisor,
        }

    @torch.no_grad()
    def _sample(self, proposals: Instances, target: Instances) -> tuple[Boxes, Tensor, Tensor]:
        """Return sampled boxes, their objects [S, 4], and which are positive; objects are candidates too."""
        candidates = Boxes.cat([target.gt_boxes, proposals.proposal_boxes])
        matched, labels = self.matcher(pairwise_iou(target.gt_boxes, candidates))
        positive, negative = subsample_labels(labels, self.count, self.positive_fraction, bg_label=0)
        rows, known = torch.cat([positive, negative]), target.gt_boxes.tensor
        objects = known[matched[rows]] if len(known) else known.new_zeros(len(rows), 4)
        return candidates[rows], objects, torch.arange(len(rows), device=rows.device) < len(positive)


class OLN(nn.Module):
    """Proposal generator with Detectron2's interface, so that its `ProposalNetwork` trains and tests it.

    Proposals have the logit of their score as `objectness_logits`, best first. MODEL.OLN.BOX_ON False leaves out the
    box head.
    """

    @configurable
    def __init__(
        self,
        *,
        rpn: OLNRPN,
        box: LocalizationHead | None,
        nms_thresh: float,
        post_nms_topk: int,
        score_threshold: float = 0.0,
    ) -> None:
        """Create the generator.

        Args:
            rpn: first stage.
            box: second stage; None for the first stage only.
            nms_thresh: IoU of the final suppression.
            post_nms_topk: proposals per image.
            score_threshold: proposals have more than this.
        """
        super().__init__()
        self.rpn, self.box = rpn, box
        self.nms_thresh, self.score_threshold, self.min_box_size = nms_thresh, score_threshold, 0.0
        self.pre_nms_topk = {True: rpn.topk[True], False: rpn.topk[False]}
        self.post_nms_topk = {True: post_nms_topk, False: post_nms_topk}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "rpn": OLNRPN(cfg, input_shape),
            "box": LocalizationHead(cfg, input_shape) if cfg.MODEL.OLN.BOX_ON else None,
            "nms_thresh": cfg.MODEL.RPN.NMS_THRESH,
            "post_nms_topk": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            "score_threshold": cfg.MODEL.OLN.SCORE_THRESH,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: Sequence[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return the proposals of each image, in training those of the first stage, and in training the losses."""
        # The backbone may compute in half precision; qualities and boxes do not.
        features = {name: maps.float() for name, maps in features.items()}
        proposals, losses = self.rpn(images, features, gt_instances if self.training else None)
        if self.training:
            assert gt_instances is not None, "training needs ground truth"
            if self.box is not None:
                losses |= self.box.losses(features, proposals, gt_instances)
            return proposals, losses
        with torch.no_grad():
            return [self._select(features, number, found) for number, found in enumerate(proposals)], {}

    def _select(self, features: dict[str, Tensor], number: int, found: Instances) -> Instances:
        """Score, refine and suppress the proposals of one image."""
        boxes, scores = found.proposal_boxes, found.objectness_logits.sigmoid()
        if self.box is not None and len(found):
            maps = {name: features[name][number : number + 1] for name in self.box.in_features}
            boxes, logits = self.box.refine(maps, boxes)
            boxes.clip(found.image_size)
            scores = quality_score(found.objectness_logits, logits)
        kept = (boxes.nonempty() & torch.isfinite(scores) & (scores > self.score_threshold)).nonzero()[:, 0]
        boxes, scores = boxes[kept], scores[kept]
        best = nms(boxes.tensor, scores, self.nms_thresh, self.post_nms_topk[False])
        logits = scores[best].clamp(_LOGIT_MARGIN, 1 - _LOGIT_MARGIN).logit()
        return Instances(found.image_size, proposal_boxes=boxes[best], objectness_logits=logits)
