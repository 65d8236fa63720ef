"""LP-OVOD: an FPN detector with prototypes of classes, and a head distilled from CLIP on crops (section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from torch import Tensor
from torch.nn import functional as F

from regionclip.engine.class_names import build_classes
from regionclip.methods.lp_ovod.classes import TaughtNames
from regionclip.methods.lp_ovod.scoring import ScoreWeights, fuse_probabilities
from regionclip.methods.lp_ovod.stages import STAGES, Stage
from regionclip.modeling.detector import Classifier, Selection
from regionclip.modeling.ensemble_detector import EnsembleDetector
from regionclip.modeling.heads.prototypes import PrototypeOutputLayers
from regionclip.modeling.postprocess import DetectionSelector, GeometricMeanWithSigmoid, ProbabilityOnly
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.suppression import build_suppression


class LPOVOD(EnsembleDetector):
    """Detects the classes that it was taught: base classes by training, novel ones by linear probing."""

    objectness_key = "MODEL.LP_OVOD.OBJECTNESS"

    @configurable
    def __init__(self, *, names: TaughtNames, weights: ScoreWeights, stage: Stage, **parts: Any) -> None:
        """Create a detector.

        Args:
            names: of the prototypes.
            weights: of the scores.
            stage: what is trained.
            parts: those of `EnsembleDetector`; its predictor has prototypes.
        """
        super().__init__(**parts)
        self.names, self.weights, self.stage = names, weights, stage
        stage.freeze(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        parts, method, clip = cls.shared_parts(cfg), cfg.MODEL.LP_OVOD, cfg.MODEL.CLIP
        names = TaughtNames.from_config(cfg)
        novel = len(names.novel) if method.STAGE == "probe" else 0
        box_weights, channels = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS, parts["roi_heads"].feature_dim
        return {
            **parts,
            "predictor": PrototypeOutputLayers(channels, len(names.base), novel, box_weights),
            "selector": _build_selector(cfg),
            "names": names,
            "weights": ScoreWeights(method.ALPHA, method.BETA, clip.CLSS_TEMP, method.NOVEL_TEMPERATURE),
            "stage": STAGES[method.STAGE](cfg),
            "classes": build_classes(cfg, "TEXT_EMB_PATH"),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
        }

    @property
    def predictor(self) -> PrototypeOutputLayers:
        """Prototypes and box deltas."""
        return cast(PrototypeOutputLayers, self.roi_heads.box_predictor)

    @property
    def known_names(self) -> tuple[str, ...]:
        """Base and novel names."""
        return self.names.all

    def require_names(self, names: Sequence[str]) -> None:
        """Raise a `UserError` that says how to teach names which the detector does not know."""
        self.names.require(names)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Key prefixes that need loaded weights before training."""
        return self.stage.frozen_parts

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            self.stage.set_training_mode(self)
        return self

    def forward(self, batched_inputs: Sequence[ImageInput]) -> Any:
        """Return a dict of losses in training mode, and detections in evaluation mode.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `instances` with `gt_boxes` and
                `gt_classes` in training, and `regions` with `proposal_boxes` and unit `embeddings` for distillation;
                `height` and `width` of the original image in evaluation.
        """
        if self.training:
            return self.stage.losses(self, batched_inputs)
        found = [self.detect(encoding, None, Selection()) for encoding in self.encode_images(batched_inputs)]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return [R, K + 1] of regions as `embed_regions` has them; the last column is 1 minus the highest.

        Raises:
            UserError: the classifier has a name that the detector was not taught.
        """
        known = classifier or self.configured_classes()
        own, augmented = self.raf.split(embeddings)
        embedding, features = self.columns(own)
        clip = (known(F.normalize(embedding, dim=1)) / self.weights.temperature).softmax(dim=1)[:, : known.classes]
        prototypes = self.predictor.all_prototypes
        found = _rows_of(self.names, tuple(known.names), len(prototypes))
        rows, novel, has_prototype = (part.to(prototypes.device) for part in found)
        prototypes = prototypes[rows.clamp(max=len(prototypes) - 1)]
        fused = fuse_probabilities(features @ prototypes.T, clip, novel, has_prototype, self.weights)
        return self.raf.fuse(torch.cat([fused, 1 - fused.amax(dim=1, keepdim=True)], dim=1), augmented, known)


@lru_cache(maxsize=16)
def _rows_of(names: TaughtNames, wanted: tuple[str, ...], prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prototype of each wanted name, int64 [K], whether it is novel, and whether it has a prototype."""
    rows = torch.tensor(names.rows(wanted), dtype=torch.int64)
    return rows, rows >= len(names.base), rows < prototypes


def _build_selector(cfg: CfgNode) -> DetectionSelector:
    heads, limit = cfg.MODEL.ROI_HEADS, cfg.TEST.DETECTIONS_PER_IMAGE
    return DetectionSelector(
        score_threshold=heads.SCORE_THRESH_TEST,
        max_detections=None if limit < 0 else limit,
        fusion=GeometricMeanWithSigmoid() if cfg.MODEL.LP_OVOD.OBJECTNESS else ProbabilityOnly(),
        suppression=build_suppression(cfg),
    )
