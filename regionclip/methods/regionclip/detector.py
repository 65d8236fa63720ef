"""RegionCLIP detector: a CLIP backbone classifies the boxes of an independent proposal source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone, build_roi_heads
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from regionclip.clip.architectures import TRANSFORMER_EMBEDDING_DIM
from regionclip.engine.class_names import tested_names, trained_names
from regionclip.errors import user_error
from regionclip.methods.regionclip.box_predictor import TextEmbeddingOutputLayers
from regionclip.methods.regionclip.checks import DENSE_HEADS
from regionclip.methods.regionclip.heads import CLIPRes5ROIHeads, CLIPStandardROIHeads, ForegroundSampling
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.build import build_text_encoder_if_wanted
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.detector import Classifier, EmbedsClassNames, Part, Selection, TextSpace
from regionclip.modeling.inference.early_end import LazyRegions, detect_selected
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource
from regionclip.modeling.region_encoding import FeatureMaps, RegionEncoding, each_image
from regionclip.modeling.retrieval_augmentation.build import build_raf, build_ral
from regionclip.modeling.retrieval_augmentation.features import NoAugmentation, RegionAugmentation
from regionclip.modeling.retrieval_augmentation.loss import RetrievalAugmentedLoss
from regionclip.modeling.score_scale import ScoreScale

if TYPE_CHECKING:
    from regionclip.methods.regionclip.transformer_heads import CLIPTransformerROIHeads

    RegionHeads = CLIPRes5ROIHeads | CLIPStandardROIHeads | CLIPTransformerROIHeads


class CLIPFastRCNN(nn.Module):
    """Two-stage open-vocabulary detector, with the published state-dict keys."""

    backbone: Backbone
    roi_heads: RegionHeads
    preprocessor: ImagePreprocessor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        roi_heads: RegionHeads,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource,
        lang_encoder: nn.Module | None = None,
        image_projection: nn.Parameter | None = None,
        ral: RetrievalAugmentedLoss | None = None,
        raf: RegionAugmentation | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """Create a detector.

        Args:
            backbone: CLIP image encoder, with or without an FPN.
            roi_heads: RoI head that can share modules of the image encoder.
            preprocessor: normalizes images for the backbone.
            proposal_source: source of the regions; the modules of an RPN are registered with the detector.
            lang_encoder: text encoder, kept for concept features.
            image_projection: [C, D] from region vectors of a transformer backbone to the joint space.
            ral: further losses against negative words (RALF).
            raf: augments region embeddings (RALF).
            class_names: of the classes of evaluation, if known.
        """
        super().__init__()
        rpn = rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.backbone = backbone
        self.lang_encoder = lang_encoder
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.roi_heads = roi_heads
        self.preprocessor = preprocessor
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.proposal_source = proposal_source
        self.image_projection = image_projection
        self.ral, self.raf, self.class_names = ral, raf or NoAugmentation(), tuple(class_names)
        image_encoder = clip_image_encoder(backbone)
        if isinstance(roi_heads, EmbedsClassNames):
            cast("CLIPTransformerROIHeads", roi_heads).borrow(self)
        elif image_encoder is not None:
            cast(CLIPRes5ROIHeads | CLIPStandardROIHeads, roi_heads).borrow(image_encoder)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        backbone = build_backbone(cfg)
        preprocessor = build_preprocessor(cfg, backbone.size_divisibility)
        return {
            "backbone": backbone,
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "preprocessor": preprocessor,
            "proposal_source": build_proposal_source(cfg),
            "lang_encoder": build_text_encoder_if_wanted(cfg),
            "image_projection": _build_projection_if_wanted(cfg, backbone),
            "ral": build_ral(cfg, trained_names(cfg)),
            "raf": build_raf(cfg, preprocessor),
            "class_names": tested_names(cfg),
        }

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.preprocessor.mean.device

    def set_classes(self, names: Sequence[str]) -> None:
        """Embed class names, for detectors with their own text encoder; raises `TypeError` for any other."""
        if not isinstance(self.roi_heads, EmbedsClassNames):
            raise TypeError("this detector compares with class embeddings from a file: set MODEL.CLIP.TEXT_EMB_PATH")
        self.roi_heads.set_classes(names)

    def train(self, mode: bool = True) -> CLIPFastRCNN:
        """Set training mode; the RPN always stays in evaluation mode."""
        super().train(mode)
        for module in (self.offline_backbone, self.offline_proposal_generator):
            if module is not None:
                module.eval()
        return self

    def forward(self, batched_inputs: Sequence[ImageInput]) -> Any:
        """Return a dict of losses in training mode, and `inference(batched_inputs)` in evaluation mode.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `instances`
                with `gt_boxes` and `gt_classes` in training and for ground-truth proposals;
                `height` and `width` of the original image; `seed` of the region sampling.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if isinstance(self.roi_heads, ForegroundSampling):
            self.roi_heads.seed_sampling(image["seed"] for image in batched_inputs if "seed" in image)
        targets = [image["instances"].to(self.device) for image in batched_inputs]
        proposals = self.proposal_source.propose(batched_inputs, self.device)
        images = self.preprocessor([image["image"] for image in batched_inputs])
        features = self.backbone(images.tensor)
        _, losses = self.roi_heads(images, features, proposals, targets)
        if self.ral is not None:
            losses |= self.ral(partial(self.roi_heads.encode, features), targets, batched_inputs)
        return losses

    def inference(
        self,
        batched_inputs: Sequence[ImageInput],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Detect objects.

        Args:
            batched_inputs: as for `forward`.
            detected_instances: known boxes and classes, for which only masks are predicted.
            do_postprocess: rescale to `height`, `width`, and return `[{"instances": ...}]`.

        Returns:
            For each image Instances with `pred_boxes`, `scores`, `pred_classes` (and `pred_masks`).
        """
        images = self.preprocessor([image["image"] for image in batched_inputs])
        features = self.backbone(images.tensor)
        if detected_instances is None and self.raf.dim:
            encodings = self._encode_images(batched_inputs, features, proposals=True)
            found = [self.detect(encoding, None, Selection()) for encoding in encodings]
            results = self.roi_heads.forward_with_given_boxes(features, found)
        elif detected_instances is None:
            proposals = self.proposal_source.propose(batched_inputs, self.device)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            known = [instances.to(self.device) for instances in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, known)
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the CLIP image encoder."""
        image_encoder = clip_image_encoder(self.backbone)
        assert image_encoder is not None, "require_open_vocabulary() was not asked"
        return TextSpace(image_encoder.architecture.embedding_dim, image_encoder.architecture.name)

    @property
    def score_threshold(self) -> float:
        """SCORE_THRESH_TEST."""
        return self.roi_heads.box_predictor.selector.score_threshold

    @property
    def score_scale(self) -> ScoreScale:
        """That of the reported scores."""
        return self.roi_heads.box_predictor.selector.scale

    @property
    def unused_with_class_names(self) -> tuple[str, ...]:
        """Class embeddings, which class names replace, and the mask head, which is not used with them."""
        predictor = "roi_heads.box_predictor"
        return f"{predictor}.cls_score", f"{predictor}.test_cls_score", "roi_heads.mask_head"

    def require_open_vocabulary(self) -> None:
        """Raise a `UserError` unless the classifier uses text embeddings and boxes are class-agnostic."""
        predictor = self.roi_heads.box_predictor
        if not isinstance(predictor, TextEmbeddingOutputLayers):
            fix = "use a config with CLIPFastRCNN, CLIPRes5ROIHeads and USE_TEXT_EMB_CLASSIFIER"
            raise user_error("detector", "a classifier of text embeddings", type(predictor).__name__, fix)
        if not predictor.keep_proposal_boxes and predictor.bbox_pred.out_features != 4:
            fix = "use a config with MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
            raise user_error("detector", "box deltas that hold for any word", "some for each trained class", fix)

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """None: any."""
        return None

    def require_names(self, names: Sequence[str]) -> None:
        """Return: any class name will do."""

    @torch.no_grad()
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[RegionEncoding]:
        """Return the feature maps of each image with its proposals, computed now or on first access."""
        return self._encode_images(inputs, self.image_features(inputs), proposals=proposals)

    def _encode_images(
        self, inputs: Sequence[ImageInput], features: FeatureMaps, *, proposals: bool
    ) -> list[RegionEncoding]:
        encodings = [
            RegionEncoding(
                maps, partial(self._propose, image), partial(self._regions, image["image"]), image=image["image"]
            )
            for maps, image in zip(each_image(features), inputs, strict=True)
        ]
        if proposals:
            found = self.proposal_source.propose(inputs, self.device)
            for encoding, boxes in zip(encodings, found, strict=True):
                encoding.proposals = boxes
        return encodings

    def _propose(self, image: ImageInput) -> Instances:
        return self.proposal_source.propose([image], self.device)[0]

    def _regions(self, image: Tensor, maps: FeatureMaps, proposals: Instances) -> LazyRegions:
        (scorable,) = self.roi_heads.box_predictor.scorable([proposals])
        make_encoder = partial(self.roi_heads.encoder_of_image, maps)
        return LazyRegions(scorable, partial(self.raf.encoder, make_encoder, image, self._refine))

    def _refine(self, embeddings: Tensor, boxes: Boxes) -> Tensor:
        return self.roi_heads.box_predictor.refine(embeddings, boxes)

    @torch.no_grad()
    def detect(self, encoding: RegionEncoding, classifier: Classifier | None, selection: Selection) -> Instances:
        """Return the detections of one image; see `OpenVocabularyDetector.detect`."""
        predictor = self.roi_heads.box_predictor
        classify = predictor.classify_as_configured() if classifier is None else partial(self._classify, classifier)
        classes = predictor.scoring_layer.out_features if classifier is None else classifier.classes
        if self.raf.dim:
            classify = self.raf.classify(classify, classifier or self.configured_classes())
        return detect_selected(encoding.regions, classify, classes, predictor.selector, selection)

    def configured_classes(self) -> ConfiguredClasses:
        """Return the classes of an evaluation, which the predictor compares with."""
        return ConfiguredClasses(self.roi_heads.box_predictor.scoring_layer.weight, self.class_names)

    def _classify(self, classifier: Classifier, own: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
        return self._refine(own, proposals.proposal_boxes), self._own_probabilities(own, classifier)

    @torch.no_grad()
    def embed_regions(self, encoding: RegionEncoding, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes in pixels of the network input.

        Those of a detector with RAF have the augmented embeddings after these.
        """
        assert encoding.image is not None
        return self.raf.append(self.encode_boxes(encoding.maps, boxes), encoding.image, boxes, self._refine)

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return the softmax [R, K + 1] over all classes; the last column sums background names and background row.

        RAF re-weights it.
        """
        own, features = self.raf.split(embeddings)
        found = self._own_probabilities(own, classifier)
        return self.raf.fuse(found, features, classifier or self.configured_classes()) if self.raf.dim else found

    def _own_probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        predictor = self.roi_heads.box_predictor
        if classifier is None:
            return predictor(embeddings)[0].softmax(dim=1)
        probabilities = predictor.logits(embeddings, classifier).softmax(dim=1)
        rest = probabilities[:, classifier.classes :]
        if rest.shape[1] == 1:
            return probabilities
        return torch.cat([probabilities[:, : classifier.classes], rest.sum(dim=1, keepdim=True)], dim=1)

    def prepare_for_inference(
        self, precision: str = "float32", first_stage: str = "res5", when_emulated: str = "replace"
    ) -> CLIPFastRCNN:
        """Optimize the detector in place for inference; see `modeling.inference.prepare`."""
        prepare_for_inference(self, precision, first_stage, when_emulated)
        return self

    def export_parts(self) -> Iterator[Part]:
        """Yield `backbone`, `rpn` if there is one, and `head`; raises `UserError` for what ONNX does not support."""
        if self.raf.dim:
            fix = "add MODEL.RALF.RAF.ENABLED False, or run this detector in Python"
            raise user_error("export", "a detector without RAF, whose concepts no graph has", "one with RAF", fix)
        from regionclip.methods.regionclip.export import export_parts  # registers operators with torch

        return export_parts(self)

    @torch.no_grad()
    def encode_regions(self, batched_inputs: Sequence[ImageInput], proposals: Sequence[Instances]) -> list[Tensor]:
        """Return the embeddings [R, D] of each image's `proposal_boxes`, not normalized."""
        maps = self.image_features(batched_inputs)
        return [
            self.encode_boxes({name: part[i : i + 1] for name, part in maps.items()}, proposal.proposal_boxes)
            for i, proposal in enumerate(proposals)
        ]

    @torch.no_grad()
    def encode_boxes(self, maps: dict[str, Tensor], boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes on the feature maps [1, C, H, W] of one image."""
        return self.roi_heads.encode(maps, [boxes])

    @torch.no_grad()
    def image_features(self, batched_inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Return the feature maps [N, C, H, W] of the backbone, which the RoI head pools from."""
        return self.backbone(self.preprocessor([image["image"] for image in batched_inputs]).tensor)


def _build_projection_if_wanted(cfg: CfgNode, backbone: Backbone) -> nn.Parameter | None:
    if cfg.MODEL.ROI_HEADS.NAME not in DENSE_HEADS:
        return None
    from regionclip.methods.regionclip.transformer_heads import make_projection

    (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
    return make_projection(backbone.output_shape()[name].channels, TRANSFORMER_EMBEDDING_DIM)
