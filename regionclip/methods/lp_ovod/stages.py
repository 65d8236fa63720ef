"""The two trainings of LP-OVOD: the detector on base classes, and linear probing of novel ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from detectron2.config import CfgNode
from torch import Tensor

from regionclip.modeling.ensemble_detector import region_generators
from regionclip.modeling.losses.classification import sigmoid_focal
from regionclip.modeling.proposals.sources import ImageInput

if TYPE_CHECKING:
    from regionclip.methods.lp_ovod.detector import LPOVOD


class Stage(Protocol):
    """What is trained, and by which losses."""

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Key prefixes that need loaded weights before training."""
        ...

    def freeze(self, model: LPOVOD) -> None:
        """Fix the weights that are not trained."""
        ...

    def set_training_mode(self, model: LPOVOD) -> None:
        """Return parts of a model in training mode to evaluation mode."""
        ...

    def losses(self, model: LPOVOD, inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        ...


class BaseTraining:
    """Everything is trained, on boxes of base classes, and on CLIP's embeddings of proposals (sections 3.1, 3.2)."""

    frozen_parts: tuple[str, ...] = ()

    def __init__(self, distill_weight: float) -> None:
        """Create the stage; without weight there is no distillation."""
        self.distill_weight = distill_weight

    def freeze(self, model: LPOVOD) -> None:
        """Train all, and without distillation all but its head."""
        heads = model.roi_heads
        for part in () if self.distill_weight else (heads.distill_box_head, heads.distill_projection):
            part.requires_grad_(False)

    def set_training_mode(self, model: LPOVOD) -> None:
        """Leave all in training mode."""

    def losses(self, model: LPOVOD, inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Return the losses of RPN, classes, boxes and distillation."""
        images, targets = model.preprocess(inputs)
        features = model.backbone(images.tensor)
        proposals, losses = model.proposal_generator(images, features, targets)
        predictor, heads = model.predictor, model.roi_heads
        sampled = heads.sample(proposals, targets, len(predictor.prototypes), region_generators(inputs))
        hidden = heads.box_head(heads.pool(features, sampled.boxes))
        losses |= predictor.losses(hidden, sampled.labels, sampled.tensor, sampled.objects)
        if self.distill_weight:
            losses["loss_distill"] = self.distill_weight * model.distillation_loss(features, inputs)
        return losses


class LinearProbing:
    """The prototypes of novel classes are trained, on retrieved boxes (section 3.3)."""

    frozen_parts: tuple[str, ...] = (
        *("backbone.", "proposal_generator.", "roi_heads.box_head", "roi_heads.distill"),
        *("roi_heads.box_predictor.prototypes", "roi_heads.box_predictor.bbox_pred"),
    )

    def freeze(self, model: LPOVOD) -> None:
        """Train the novel prototypes only."""
        model.requires_grad_(False)
        assert model.predictor.novel_prototypes is not None
        model.predictor.novel_prototypes.requires_grad_(True)

    def set_training_mode(self, model: LPOVOD) -> None:
        """Normalize by running statistics everywhere; the RPN proposes as many boxes as in training."""
        for part in (model.backbone, model.roi_heads):
            part.eval()

    def losses(self, model: LPOVOD, inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Return the focal loss of novel classes, whose labels are the rows of their prototypes."""
        prototypes = model.predictor.novel_prototypes
        assert prototypes is not None
        features, labels = self.features(model, inputs)
        return {"loss_cls": sigmoid_focal(features @ prototypes.T, labels)}

    @torch.no_grad()
    def features(self, model: LPOVOD, inputs: Sequence[ImageInput]) -> tuple[Tensor, Tensor]:
        """Return the features [R, C] and labels [R] of sampled regions of a batch, by the frozen detector."""
        images, targets = model.preprocess(inputs)
        prototypes = model.predictor.novel_prototypes
        assert prototypes is not None
        maps = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, maps, targets)
        sampled = model.roi_heads.sample(proposals, targets, len(prototypes), region_generators(inputs))
        return model.roi_heads.box_head(model.roi_heads.pool(maps, sampled.boxes)), sampled.labels


STAGES: dict[str, Callable[[CfgNode], Stage]] = {
    "base": lambda cfg: BaseTraining(cfg.MODEL.LP_OVOD.DISTILL_WEIGHT),
    "probe": lambda cfg: LinearProbing(),
}
"""Values of MODEL.LP_OVOD.STAGE."""
