"""DetPro with RALF: a text head with learned prompts and background, and a head distilled from CLIP on crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.prompts import same_to_clip
from regionclip.data.class_lists import parse_names
from regionclip.engine.class_names import build_classes
from regionclip.methods.ralf.classes import build_base_classes, label_names
from regionclip.methods.ralf.text_head import CosineOutputLayers, EnsembleScores, fuse_heads
from regionclip.modeling.detector import Classifier, Selection
from regionclip.modeling.ensemble_detector import EnsembleDetector, region_generators
from regionclip.modeling.postprocess import build_detection_selector
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.retrieval_augmentation.build import build_ral
from regionclip.modeling.retrieval_augmentation.loss import RetrievalAugmentedLoss


class DetPro(EnsembleDetector):
    """Open-vocabulary detector whose two heads compare regions with text embeddings."""

    @configurable
    def __init__(
        self,
        *,
        base_names: Sequence[str],
        scores: EnsembleScores,
        distill_weight: float,
        ral: RetrievalAugmentedLoss | None = None,
        **parts: Any,
    ) -> None:
        """Create a detector.

        Args:
            base_names: names of base classes, for which scores trust the first head; all others are novel.
            scores: fusion of both heads.
            distill_weight: of the distillation loss; 0 leaves it out.
            ral: further losses against negative words.
            parts: those of `EnsembleDetector`; its predictor compares with text embeddings.
        """
        super().__init__(**parts)
        self.base_names = frozenset(map(same_to_clip, base_names))
        self.scores, self.distill_weight, self.ral = scores, distill_weight, ral
        if not distill_weight:
            for part in (self.roi_heads.distill_box_head, self.roi_heads.distill_projection):
                part.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        parts, method = cls.shared_parts(cfg), cfg.MODEL.RALF
        channels, dim = parts["roi_heads"].feature_dim, cfg.MODEL.CLIP.TEXT_EMB_DIM
        box_weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        return {
            **parts,
            "predictor": CosineOutputLayers(channels, dim, box_weights, cfg.MODEL.CLIP.CLSS_TEMP),
            "selector": build_detection_selector(cfg),
            "classes": build_base_classes(cfg),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH") or build_classes(cfg, "TEXT_EMB_PATH"),
            "base_names": parse_names(method.BASE_CLASSES, synonyms=False),
            "scores": EnsembleScores(method.TEST_TEMPERATURE, method.ENSEMBLE_EXPONENT),
            "distill_weight": method.DISTILL_WEIGHT,
            "ral": build_ral(cfg, label_names(cfg)),
        }

    @property
    def predictor(self) -> CosineOutputLayers:
        """Projection, background and box deltas."""
        return cast(CosineOutputLayers, self.roi_heads.box_predictor)

    def forward(self, batched_inputs: Sequence[ImageInput]) -> Any:
        """Return a dict of losses in training mode, and detections in evaluation mode.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `instances` with `gt_boxes`,
                `gt_classes` and, with a mask head, `gt_masks` in training, and `regions` with `proposal_boxes` and unit
                `embeddings` for distillation; `height` and `width` of the original image in evaluation.
        """
        if self.training:
            return self._losses(batched_inputs)
        encodings = self.encode_images(batched_inputs)
        found = [
            self.roi_heads.predict_masks(encoding.maps, [self.detect(encoding, None, Selection())])[0]
            for encoding in encodings
        ]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    def _losses(self, inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        known, heads, predictor = self.train_classes, self.roi_heads, self.predictor
        assert known is not None, "training_problems() was not asked"
        images, targets = self.preprocess(inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        sampled = heads.sample(proposals, targets, known.classes, region_generators(inputs))
        hidden = heads.box_head(heads.pool(features, sampled.boxes))
        losses |= predictor.losses(hidden, sampled.labels, sampled.tensor, sampled.objects, known)
        losses |= heads.mask_losses(features, sampled, targets, known.classes)
        if self.distill_weight:
            losses["loss_distill"] = self.distill_weight * self.distillation_loss(features, inputs)
        if self.ral is not None:
            losses |= self.ral(lambda boxes: self._embed_for_text(features, boxes), targets, inputs)
        return losses

    def _embed_for_text(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the embeddings [N, D] of boxes by the first head, not normalized."""
        return self.predictor.projection(self.roi_heads.box_head(self.roi_heads.pool(features, boxes)))

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return the fused scores [R, K + 1] of both heads for regions as `embed_regions` has them.

        The last column, background, is 0. RAF re-weights the scores.
        """
        known = classifier or self.configured_classes()
        own, augmented = self.raf.split(embeddings)
        embedding, features = self.columns(own)
        novel = torch.tensor([same_to_clip(name) not in self.base_names for name in known.names], device=own.device)
        text, image = self.predictor.cosines(features, known), known(F.normalize(embedding, dim=1))
        return self.raf.fuse(fuse_heads(text, image, novel, self.scores), augmented, known, self.predictor.background)
