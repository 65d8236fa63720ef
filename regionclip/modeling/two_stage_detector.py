"""A Faster R-CNN with its own RPN whose region embeddings have further features after those in CLIP's space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone, build_proposal_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from regionclip.config.resolve import clip_architecture
from regionclip.errors import user_error
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.configured_detector import ConfiguredDetector
from regionclip.modeling.detector import Classifier, Part, Selection, TextSpace
from regionclip.modeling.inference.early_end import LazyRegions, detect_selected
from regionclip.modeling.postprocess import DetectionSelector
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.oln.anchors import AnchorMatcher
from regionclip.modeling.proposals.oln.localizer import REGIONS_AT_ONCE
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource
from regionclip.modeling.region_encoding import RegionEncoding, each_image, scorable_proposals
from regionclip.modeling.retrieval_augmentation.build import build_raf
from regionclip.modeling.retrieval_augmentation.features import NoAugmentation, RegionAugmentation


class BoxRefinement(Protocol):
    """Class-agnostic box deltas on region features."""

    bbox_pred: nn.Module
    """Maps features [R, C] to deltas [R, 4]."""
    transform: Box2BoxTransform


class TwoStageDetector(ConfiguredDetector):
    """The part of such detectors that does not depend on how regions are encoded and classified."""

    objectness_key: ClassVar[str] = "MODEL.CLIP.MULTIPLY_RPN_SCORE"
    """Config key that makes scores depend on objectness."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: RPN,
        roi_heads: Any,
        predictor: BoxRefinement,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource | None,
        selector: DetectionSelector,
        text_space: TextSpace,
        classes: ConfiguredClasses | None = None,
        test_classes: ConfiguredClasses | None = None,
        raf: RegionAugmentation | None = None,
    ) -> None:
        """Create a detector.

        Args:
            backbone: with an FPN.
            proposal_generator: RPN that is trained with the detector, and gives the regions of training.
            roi_heads: encode regions.
            predictor: refines boxes, and classifies; it becomes the heads' `box_predictor`.
            preprocessor: normalizes images.
            proposal_source: source of the proposals in evaluation; None takes `proposal_generator`.
            selector: selects detections.
            text_space: of the class embeddings.
            classes: of the config.
            test_classes: of evaluation; None takes `classes`.
            raf: augments region embeddings (RALF).
        """
        super().__init__()
        rpn = None if proposal_source is None else rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.backbone, self.proposal_generator, self.roi_heads = backbone, proposal_generator, roi_heads
        roi_heads.box_predictor = predictor
        self.preprocessor, self.proposal_source, self.selector = preprocessor, proposal_source, selector
        self._text_space, self.train_classes, self.test_classes = text_space, classes, test_classes
        self.raf = raf or NoAugmentation()
        for part in (self.offline_backbone, self.offline_proposal_generator):
            if part is not None:
                part.requires_grad_(False)

    @staticmethod
    def shared_parts(cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor but for heads, predictor, selector and classes."""
        backbone, clip = build_backbone(cfg), cfg.MODEL.CLIP
        preprocessor = build_preprocessor(cfg, backbone.size_divisibility)
        return {
            "backbone": backbone,
            "proposal_generator": _build_rpn(cfg, backbone),
            "preprocessor": preprocessor,
            "proposal_source": build_proposal_source(cfg) if clip.CROP_REGION_TYPE else None,
            "text_space": TextSpace(clip.TEXT_EMB_DIM, clip_architecture(cfg).name),
            "raf": build_raf(cfg, preprocessor),
        }

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the class embeddings."""
        return self._text_space

    def train(self, mode: bool = True) -> Self:
        """Set training mode; an offline RPN stays in evaluation mode."""
        super().train(mode)
        for part in (self.offline_backbone, self.offline_proposal_generator):
            if part is not None:
                part.eval()
        return self

    @torch.no_grad()
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[RegionEncoding]:
        """Return the feature maps of each image with its proposals, computed now or on first access."""
        images = self.preprocessor([image["image"] for image in inputs])
        features = dict(self.backbone(images.tensor))
        encodings = []
        for number, (maps, image) in enumerate(zip(each_image(features), inputs, strict=True)):
            propose = partial(self._propose, image, images.image_sizes[number], maps)
            make_regions = partial(self._regions, image["image"])
            encodings.append(RegionEncoding(maps, propose, make_regions, image=image["image"]))
        if proposals and self.proposal_source is not None:
            for encoding, found in zip(encodings, self.proposal_source.propose(inputs, self.device), strict=True):
                encoding.proposals = found
        return encodings

    def _propose(self, image: ImageInput, size: tuple[int, int], maps: dict[str, Tensor]) -> Instances:
        if self.proposal_source is not None:
            return self.proposal_source.propose([image], self.device)[0]
        proposals, _ = self.proposal_generator(ImageList(next(iter(maps.values())), [size]), maps, None)
        return cast(Instances, proposals[0])

    def _regions(self, image: Tensor, maps: dict[str, Tensor], proposals: Instances) -> LazyRegions:
        scorable = scorable_proposals(proposals, self.selector, self.objectness_key)
        make_encoder = partial(self._encoder_of_image, maps)
        return LazyRegions(scorable, partial(self.raf.encoder, make_encoder, image, self.refine))

    def _encoder_of_image(self, maps: dict[str, Tensor], regions: int) -> Callable[[Boxes], Tensor]:
        return partial(self.encode_boxes, maps)

    @property
    def feature_dim(self) -> int:
        """Number C of region features."""
        raise NotImplementedError

    def encode_boxes(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """Return [R, D + C] of boxes of one image on its maps: the embeddings, not normalized, and the features."""
        raise NotImplementedError

    def refine(self, embeddings: Tensor, boxes: Boxes) -> Tensor:
        """Return the boxes [R, 4], with deltas applied, of region embeddings [R, E] and their proposals."""
        predictor = cast(BoxRefinement, self.roi_heads.box_predictor)
        _, features = self.columns(embeddings)
        return self._apply_deltas(predictor.transform, predictor.bbox_pred(features), boxes.tensor)

    def _apply_deltas(self, transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
        return transform.apply_deltas(deltas, boxes)

    def columns(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings in CLIP's space [R, D], and the features [R, C], in region embeddings [R, E]."""
        dim = self._text_space.dim
        return embeddings[:, :dim], embeddings[:, dim : dim + self.feature_dim]

    @torch.no_grad()
    def detect(self, encoding: RegionEncoding, classifier: Classifier | None, selection: Selection) -> Instances:
        """Return the detections of one image; see `OpenVocabularyDetector.detect`.

        Raises:
            UserError: the classifier has a name that the detector does not know.
        """
        known = classifier or self.configured_classes()

        def classify(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            return self.refine(embeddings, proposals.proposal_boxes), self.probabilities(embeddings, known)

        return detect_selected(encoding.regions, classify, known.classes, self.selector, selection)

    @torch.no_grad()
    def embed_regions(self, encoding: RegionEncoding, boxes: Boxes) -> Tensor:
        """Return [R, D + C] of boxes in pixels of the network input: the embeddings and the features.

        Those of a detector with RAF have the augmented embeddings after these.
        """
        assert encoding.image is not None
        parts = [boxes[rows] for rows in torch.arange(len(boxes), device=boxes.device).split(REGIONS_AT_ONCE)]
        own = [self.encode_boxes(encoding.maps, part) for part in parts]
        return torch.cat(
            [self.raf.append(rows, encoding.image, part, self.refine) for rows, part in zip(own, parts, strict=True)]
        )

    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return [R, K + 1] of regions as `embed_regions` has them; see `OpenVocabularyDetector.probabilities`."""
        raise NotImplementedError

    def export_parts(self) -> Iterator[Part]:
        """Raise a `UserError`: there are no graphs of this detector yet."""
        fix = "export a RegionCLIP detector, or run this one in Python"
        raise user_error("export", "a RegionCLIP detector", type(self).__name__, fix)


def _build_rpn(cfg: CfgNode, backbone: Backbone) -> RPN:
    generator = cast(RPN, build_proposal_generator(cfg, backbone.output_shape()))
    if cfg.MODEL.RPN.MIN_POS_IOU:
        negative, positive = cfg.MODEL.RPN.IOU_THRESHOLDS
        generator.anchor_matcher = AnchorMatcher(negative, positive, cfg.MODEL.RPN.MIN_POS_IOU)
    return generator
