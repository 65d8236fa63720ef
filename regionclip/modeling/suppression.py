"""Suppression of duplicate boxes: hard NMS and soft-NMS, within classes or across them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from detectron2.config import CfgNode
from torch import Tensor

from regionclip.ops import batched_nms, soft_nms
from regionclip.ops.soft_nms import ClassSeparation
from regionclip.ops.soft_nms_rule import SoftNMSMethod


class Suppression(Protocol):
    """Removes duplicate boxes within classes."""

    @property
    def rescores(self) -> bool:
        """Whether the returned scores differ from the given ones."""
        ...

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
        """Return the kept indices and their scores, best first, at most `limit`."""
        ...


@dataclass(frozen=True)
class HardSuppression:
    """Hard NMS: drop boxes whose IoU with a higher-scoring box of the class exceeds the threshold."""

    iou_threshold: float
    rescores = False

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
        """Return the kept indices and their unchanged scores, best first, at most `limit`."""
        keep = batched_nms(boxes, scores, classes, self.iou_threshold, limit)
        return keep, scores[keep]


@dataclass(frozen=True)
class SoftSuppression:
    """Soft-NMS: decay the scores of overlapping boxes of the class."""

    method: SoftNMSMethod
    sigma: float
    iou_threshold: float
    prune_threshold: float
    class_separation: ClassSeparation
    rescores = True

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
        """Return the kept indices and their decayed scores, best first, at most `limit`."""
        return soft_nms(
            boxes,
            scores,
            classes,
            method=self.method,
            sigma=self.sigma,
            iou_threshold=self.iou_threshold,
            prune_threshold=self.prune_threshold,
            class_separation=self.class_separation,
            max_detections=limit,
        )


class NoSuppression:
    """Keep all boxes: they are not the detector's own."""

    rescores = False

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
        """Return the indices of the highest scores and these scores, best first, at most `limit`."""
        keep = scores.argsort(descending=True, stable=True)[:limit]
        return keep, scores[keep]


@dataclass(frozen=True)
class AcrossClasses:
    """Class-agnostic suppression: an object keeps only its best class."""

    suppression: Suppression

    @property
    def rescores(self) -> bool:
        """Whether the returned scores differ from the given ones."""
        return self.suppression.rescores

    def __call__(self, boxes: Tensor, scores: Tensor, classes: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
        """Return the kept indices and their scores, best first, at most `limit`."""
        return self.suppression(boxes, scores, torch.zeros_like(classes), limit)


def within_classes(suppression: Suppression) -> Suppression:
    """Return the suppression that `AcrossClasses` applies to all classes together, for each class by itself."""
    return suppression.suppression if isinstance(suppression, AcrossClasses) else suppression


def build_suppression(cfg: CfgNode) -> Suppression:
    """Return the suppression that the keys NMS_THRESH_TEST, SOFT_NMS_* and NMS_ACROSS_CLASSES describe."""
    heads = cfg.MODEL.ROI_HEADS
    suppression: Suppression = HardSuppression(heads.NMS_THRESH_TEST)
    if heads.SOFT_NMS_ENABLED:
        suppression = SoftSuppression(
            heads.SOFT_NMS_METHOD,
            heads.SOFT_NMS_SIGMA,
            heads.NMS_THRESH_TEST,
            heads.SOFT_NMS_PRUNE,
            heads.SOFT_NMS_CLASS_SEPARATION,
        )
    return AcrossClasses(suppression) if heads.NMS_ACROSS_CLASSES else suppression
