"""LP-OVOD: an FPN detector with prototypes of classes, and a head distilled from CLIP on crops (section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Self, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone, build_proposal_generator
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from regionclip.config.resolve import clip_architecture
from regionclip.errors import user_error
from regionclip.methods.lp_ovod.classes import TaughtNames, build_classes
from regionclip.methods.lp_ovod.scoring import ScoreWeights, fuse_probabilities
from regionclip.methods.lp_ovod.stages import STAGES, Stage
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.configured_detector import ConfiguredDetector
from regionclip.modeling.detector import Classifier, Part, Selection, TextSpace
from regionclip.modeling.heads.ensemble import EnsembleROIHeads
from regionclip.modeling.heads.prototypes import PrototypeOutputLayers
from regionclip.modeling.inference.early_end import LazyRegions, detect_selected
from regionclip.modeling.postprocess import (
    DetectionSelector,
    GeometricMeanWithSigmoid,
    HardSuppression,
    ProbabilityOnly,
)
from regionclip.modeling.preprocessing import ImagePreprocessor, pixels_to_unit_range
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.oln.anchors import AnchorMatcher
from regionclip.modeling.proposals.oln.localizer import REGIONS_AT_ONCE, apply_deltas
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource
from regionclip.modeling.region_encoding import RegionEncoding, each_image, scorable_proposals


class LPOVOD(ConfiguredDetector):
    """Detects the classes that it was taught: base classes by training, novel ones by linear probing."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: RPN,
        roi_heads: EnsembleROIHeads,
        predictor: PrototypeOutputLayers,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource | None,
        selector: DetectionSelector,
        names: TaughtNames,
        weights: ScoreWeights,
        stage: Stage,
        text_space: TextSpace,
        classes: ConfiguredClasses | None = None,
        test_classes: ConfiguredClasses | None = None,
    ) -> None:
        """Create a detector.

        Args:
            backbone: with an FPN.
            proposal_generator: RPN that is trained with the detector, and gives the regions of training.
            roi_heads: both heads.
            predictor: prototypes and box deltas.
            preprocessor: normalizes images.
            proposal_source: source of the proposals in evaluation; None takes `proposal_generator`.
            selector: selects detections.
            names: of the prototypes.
            weights: of the scores.
            stage: what is trained.
            text_space: of the CLIP that the head was distilled from.
            classes: of the config.
            test_classes: of evaluation; None takes `classes`.
        """
        super().__init__()
        rpn = None if proposal_source is None else rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.backbone, self.proposal_generator, self.roi_heads = backbone, proposal_generator, roi_heads
        roi_heads.box_predictor = predictor
        self.preprocessor, self.proposal_source, self.selector = preprocessor, proposal_source, selector
        self.names, self.weights, self.stage, self._text_space = names, weights, stage, text_space
        self.train_classes, self.test_classes = classes, test_classes
        stage.freeze(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        backbone, method, clip = build_backbone(cfg), cfg.MODEL.LP_OVOD, cfg.MODEL.CLIP
        roi_heads, names = EnsembleROIHeads(cfg, backbone.output_shape()), TaughtNames.from_config(cfg)
        novel = len(names.novel) if method.STAGE == "probe" else 0
        box_weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        return {
            "backbone": backbone,
            "proposal_generator": _build_rpn(cfg, backbone),
            "roi_heads": roi_heads,
            "predictor": PrototypeOutputLayers(roi_heads.feature_dim, len(names.base), novel, box_weights),
            "preprocessor": ImagePreprocessor(
                cfg.MODEL.PIXEL_MEAN,
                cfg.MODEL.PIXEL_STD,
                unit_range=pixels_to_unit_range(cfg),
                size_divisibility=backbone.size_divisibility,
            ),
            "proposal_source": build_proposal_source(cfg) if clip.CROP_REGION_TYPE else None,
            "selector": _build_selector(cfg),
            "names": names,
            "weights": ScoreWeights(method.ALPHA, method.BETA, clip.CLSS_TEMP, method.NOVEL_TEMPERATURE),
            "stage": STAGES[method.STAGE](cfg),
            "text_space": TextSpace(clip.TEXT_EMB_DIM, clip_architecture(cfg).name),
            "classes": build_classes(cfg, "TEXT_EMB_PATH"),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
        }

    @property
    def predictor(self) -> PrototypeOutputLayers:
        """Prototypes and box deltas."""
        return cast(PrototypeOutputLayers, self.roi_heads.box_predictor)

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the CLIP that the head was distilled from."""
        return self._text_space

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
        for part in (self.offline_backbone, self.offline_proposal_generator):
            if part is not None:
                part.eval()
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
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[RegionEncoding]:
        """Return the feature maps of each image with its proposals, computed now or on first access."""
        images = self.preprocessor([image["image"] for image in inputs])
        features = dict(self.backbone(images.tensor))
        encodings = []
        for number, (maps, image) in enumerate(zip(each_image(features), inputs, strict=True)):
            propose = partial(self._propose, image, images.image_sizes[number], maps)
            encodings.append(RegionEncoding(maps, propose, self._regions))
        if proposals and self.proposal_source is not None:
            for encoding, found in zip(encodings, self.proposal_source.propose(inputs, self.device), strict=True):
                encoding.proposals = found
        return encodings

    def _propose(self, image: ImageInput, size: tuple[int, int], maps: dict[str, Tensor]) -> Instances:
        if self.proposal_source is not None:
            return self.proposal_source.propose([image], self.device)[0]
        proposals, _ = self.proposal_generator(ImageList(next(iter(maps.values())), [size]), maps, None)
        return cast(Instances, proposals[0])

    def _regions(self, maps: dict[str, Tensor], proposals: Instances) -> LazyRegions:
        scorable = scorable_proposals(proposals, self.selector, "MODEL.LP_OVOD.OBJECTNESS")
        return LazyRegions(scorable, lambda count: lambda boxes: self.roi_heads.encode(maps, [boxes]))

    @torch.no_grad()
    def detect(self, encoding: RegionEncoding, classifier: Classifier | None, selection: Selection) -> Instances:
        """Return the detections of one image; see `OpenVocabularyDetector.detect`.

        Raises:
            UserError: the classifier has a name that the detector was not taught.
        """
        known = classifier or self.configured_classes()

        def classify(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            deltas = self.predictor.bbox_pred(embeddings[:, self._text_space.dim :])
            boxes = apply_deltas(self.predictor.transform, deltas, proposals.proposal_boxes.tensor)
            return boxes, self.probabilities(embeddings, known)

        return detect_selected(encoding.regions, classify, known.classes, self.selector, selection)

    @torch.no_grad()
    def embed_regions(self, encoding: RegionEncoding, boxes: Boxes) -> Tensor:
        """Return [R, D + C] of boxes in pixels of the network input: the embedding and the box head's features."""
        chunks = torch.arange(len(boxes), device=boxes.device).split(REGIONS_AT_ONCE)
        return torch.cat([self.roi_heads.encode(encoding.maps, [boxes[rows]]) for rows in chunks])

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return [R, K + 1] of regions as `embed_regions` has them; the last column is 1 minus the highest.

        Raises:
            UserError: the classifier has a name that the detector was not taught.
        """
        known = classifier or self.configured_classes()
        embedding, features = embeddings.split([self._text_space.dim, self.roi_heads.feature_dim], dim=1)
        clip = (known(F.normalize(embedding, dim=1)) / self.weights.temperature).softmax(dim=1)[:, : known.classes]
        prototypes = self.predictor.all_prototypes
        found = _rows_of(self.names, tuple(known.names), len(prototypes))
        rows, novel, has_prototype = (part.to(prototypes.device) for part in found)
        prototypes = prototypes[rows.clamp(max=len(prototypes) - 1)]
        fused = fuse_probabilities(features @ prototypes.T, clip, novel, has_prototype, self.weights)
        return torch.cat([fused, 1 - fused.amax(dim=1, keepdim=True)], dim=1)

    def export_parts(self) -> Iterator[Part]:
        """Raise a `UserError`: there are no graphs of this detector yet."""
        fix = "export a RegionCLIP detector, or run this one in Python"
        raise user_error("export", "a RegionCLIP detector", "LPOVOD", fix)


@lru_cache(maxsize=16)
def _rows_of(names: TaughtNames, wanted: tuple[str, ...], prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prototype of each wanted name, int64 [K], whether it is novel, and whether it has a prototype."""
    rows = torch.tensor(names.rows(wanted), dtype=torch.int64)
    return rows, rows >= len(names.base), rows < prototypes


def _build_rpn(cfg: CfgNode, backbone: Backbone) -> RPN:
    generator = cast(RPN, build_proposal_generator(cfg, backbone.output_shape()))
    if cfg.MODEL.RPN.MIN_POS_IOU:
        negative, positive = cfg.MODEL.RPN.IOU_THRESHOLDS
        generator.anchor_matcher = AnchorMatcher(negative, positive, cfg.MODEL.RPN.MIN_POS_IOU)
    return generator


def _build_selector(cfg: CfgNode) -> DetectionSelector:
    heads, limit = cfg.MODEL.ROI_HEADS, cfg.TEST.DETECTIONS_PER_IMAGE
    return DetectionSelector(
        score_threshold=heads.SCORE_THRESH_TEST,
        max_detections=None if limit < 0 else limit,
        fusion=GeometricMeanWithSigmoid() if cfg.MODEL.LP_OVOD.OBJECTNESS else ProbabilityOnly(),
        suppression=HardSuppression(heads.NMS_THRESH_TEST),
    )
