"""First stage of OLN: an RPN that regresses the centerness of anchors, and boxes by their distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.modeling.proposals.oln.anchors import (
    QUALITIES,
    AnchorMatcher,
    AnchorSampler,
    Quality,
    aligned_iou,
    centerness_of,
    decode_distances,
)

MIN_IOU = 1e-6
"""Lower bound of the IoU in the loss of boxes."""


class OLNRPNHead(nn.Module):
    """Convolution, L2 normalization of the channels at each position, and one output of each kind per position."""

    def __init__(self, channels: int, distance_bias: float = 0.0) -> None:
        """Create a head.

        Args:
            channels: of the feature maps.
            distance_bias: initial distances, in sides of the anchor; with the published 0 boxes start without area.
        """
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, 1, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.anchor_deltas.bias, distance_bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each feature map [N, C, H, W] quality logits [N, H * W] and distances [N, H * W, 4]."""
        logits, distances = [], []
        for feature in features:
            hidden = F.normalize(F.relu(self.conv(feature)), dim=1, eps=1e-12)
            logits.append(self.objectness_logits(hidden).flatten(1))
            distances.append(self.anchor_deltas(hidden).flatten(2).transpose(1, 2))  # [N, 4, H * W] -> [N, H * W, 4]
        return logits, distances


@dataclass(frozen=True)
class RPNTraining:
    """How the first stage of OLN is trained."""

    box_matcher: AnchorMatcher
    box_sampler: AnchorSampler
    quality_matcher: AnchorMatcher
    quality_sampler: AnchorSampler
    quality: Quality = centerness_of
    """Target of the quality, from anchor and object."""
    box_weight: float = 10.0
    quality_weight: float = 1.0
    skips_border: bool = True
    """As published, no box loss for objects that touch the left or top border of the image."""


@dataclass(frozen=True)
class SampledAnchors:
    """The anchors of an image that its losses are of."""

    box_rows: Tensor
    """int64 [P], anchors with a box loss."""
    boxes: Tensor
    """float [P, 4], their objects."""
    quality_rows: Tensor
    """int64 [S]."""
    qualities: Tensor
    """float [S], their targets."""
    normalizer: int
    """The image's part in the divisor of both losses."""


@torch.no_grad()
def sample_anchors(
    anchors: Tensor, objects: Boxes, image_size: tuple[int, int], training: RPNTraining
) -> SampledAnchors:
    """Match and sample the anchors of an image; anchors that are not fully inside take no part.

    Args:
        anchors: float [A, 4], xyxy in pixels of the network input.
        objects: G boxes.
        image_size: (height, width), without padding.
        training: matchers, samplers and target.
    """
    height, width = image_size
    limits = anchors.new_tensor([width, height])
    inside = ((anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < limits).all(dim=1)).nonzero()[:, 0]
    kept = anchors[inside]
    iou = pairwise_iou(objects, Boxes(kept))  # [G, A']
    matched, labels = training.box_matcher(iou)
    positive, negative = training.box_sampler(labels)
    normalizer = max(len(positive), 1) + max(len(negative), 1)
    if training.skips_border and len(objects):
        positive = positive[(objects.tensor[matched[positive], :2] > 0).all(dim=1)]
    rows, qualities = _sample_qualities(kept, objects, iou, training)
    targets = objects.tensor[matched[positive]] if len(objects) else kept.new_zeros(0, 4)
    return SampledAnchors(inside[positive], targets, inside[rows], qualities, normalizer)


def _sample_qualities(anchors: Tensor, objects: Boxes, iou: Tensor, training: RPNTraining) -> tuple[Tensor, Tensor]:
    """Return rows int64 [S] and targets [S] of the quality: those of negative anchors are 0."""
    matched, labels = training.quality_matcher(iou)
    positive, negative = training.quality_sampler(labels)
    own = objects.tensor[matched[positive]] if len(objects) else anchors.new_zeros(0, 4)
    targets = training.quality(anchors[positive], own)
    return torch.cat([positive, negative]), torch.cat([targets, targets.new_zeros(len(negative))])


def rpn_losses(
    anchors: Tensor, logits: Tensor, distances: Tensor, samples: Sequence[SampledAnchors], training: RPNTraining
) -> dict[str, Tensor]:
    """Return the weighted losses of boxes (linear IoU) and qualities (L1), over all images and levels.

    Args:
        anchors: float [A, 4].
        logits: float [N, A].
        distances: float [N, A, 4].
        samples: of the N images.
        training: weights of the losses.
    """
    divisor = sum(sample.normalizer for sample in samples)
    box_loss, quality_loss = distances.sum() * 0, logits.sum() * 0
    for number, sample in enumerate(samples):
        decoded = decode_distances(anchors[sample.box_rows], distances[number, sample.box_rows])
        box_loss = box_loss + (1 - aligned_iou(decoded, sample.boxes).clamp(min=MIN_IOU)).sum()
        predicted = logits[number, sample.quality_rows].sigmoid()
        quality_loss = quality_loss + (predicted - sample.qualities).abs().sum()
    return {
        "loss_oln_rpn_box": training.box_weight * box_loss / divisor,
        "loss_oln_rpn_quality": training.quality_weight * quality_loss / divisor,
    }


class OLNRPN(nn.Module):
    """First stage of OLN: the best anchors of each level, without suppression."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        rpn_head: OLNRPNHead,
        anchor_generator: nn.Module,
        topk: tuple[int, int],
        training: RPNTraining,
    ) -> None:
        """Create the stage.

        Args:
            in_features: names of the feature maps.
            rpn_head: of all levels.
            anchor_generator: one anchor per position.
            topk: proposals of a level in evaluation and in training.
            training: matchers, samplers and weights.
        """
        super().__init__()
        self.in_features, self.rpn_head, self.anchor_generator = tuple(in_features), rpn_head, anchor_generator
        self.topk, self.how_to_train = topk, training

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        rpn, oln = cfg.MODEL.RPN, cfg.MODEL.OLN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "rpn_head": OLNRPNHead(shapes[0].channels or 0, oln.REG_BIAS_INIT),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "topk": (rpn.PRE_NMS_TOPK_TEST, rpn.PRE_NMS_TOPK_TRAIN),
            "training": RPNTraining(
                box_matcher=_matcher(rpn.IOU_THRESHOLDS, oln.MIN_POS_IOU),
                box_sampler=AnchorSampler(rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION),
                quality_matcher=_matcher(oln.OBJ_IOU_THRESHOLDS, oln.MIN_POS_IOU),
                quality_sampler=AnchorSampler(oln.OBJ_BATCH, oln.OBJ_POSITIVE_FRACTION, oln.OBJ_FILL_NEGATIVES),
                quality=QUALITIES[oln.OBJ_TARGET],
                box_weight=oln.BOX_LOSS_WEIGHT,
                quality_weight=oln.OBJ_LOSS_WEIGHT,
                skips_border=oln.SKIP_BORDER_GT,
            ),
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Instances] | None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return the proposals of each image, and with targets the losses.

        Proposals have `proposal_boxes`, clipped to the image, and `objectness_logits`: of the predicted quality. They
        carry no gradient.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, distances = self.rpn_head(maps)
        losses: dict[str, Tensor] = {}
        if targets is not None:
            every = cat([level.tensor for level in anchors])
            sizes = images.image_sizes
            samples = [
                sample_anchors(every, target.gt_boxes, size, self.how_to_train)
                for target, size in zip(targets, sizes, strict=True)
            ]
            losses = rpn_losses(every, torch.cat(logits, 1), torch.cat(distances, 1), samples, self.how_to_train)
        return self._propose(anchors, logits, distances, images.image_sizes), losses

    @torch.no_grad()
    def _propose(
        self,
        anchors: Sequence[Boxes],
        logits: Sequence[Tensor],
        distances: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        boxes, best = [], []
        for of_level, level_logits, level_distances in zip(anchors, logits, distances, strict=True):
            values, rows = level_logits.topk(min(self.topk[self.training], level_logits.shape[1]), dim=1)  # [N, P]
            chosen = level_distances.gather(1, rows[:, :, None].expand(-1, -1, 4))
            boxes.append(decode_distances(of_level.tensor[rows], chosen))
            best.append(values)
        return [
            _inside(Boxes(image_boxes), image_logits, size, require_finite=self.training)
            for image_boxes, image_logits, size in zip(torch.cat(boxes, 1), torch.cat(best, 1), sizes, strict=True)
        ]


def _matcher(thresholds: Sequence[float], min_best: float) -> AnchorMatcher:
    negative, positive = thresholds
    return AnchorMatcher(negative, positive, min_best)


def _inside(boxes: Boxes, logits: Tensor, size: tuple[int, int], *, require_finite: bool) -> Instances:
    finite = torch.isfinite(boxes.tensor).all(dim=1) & torch.isfinite(logits)
    if require_finite and not bool(finite.all()):
        raise FloatingPointError("OLN predicts infinite boxes: training has diverged")
    boxes, logits = boxes[finite], logits[finite]
    boxes.clip(size)
    kept = boxes.nonempty()
    return Instances(size, proposal_boxes=boxes[kept], objectness_logits=logits[kept])
