"""CLIP on image crops: the teacher of LP-OVOD, and a zero-shot detector of its own (the baseline of ViLD)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.crops import CROP_SCALES, CropEncoder
from regionclip.clip.image_encoders.clip_vit import build_image_encoder
from regionclip.config.resolve import clip_architecture
from regionclip.engine.class_names import build_classes
from regionclip.errors import user_error
from regionclip.modeling.build import build_text_encoder_if_wanted
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.configured_detector import SoftmaxOverProposals
from regionclip.modeling.detector import Part, Selection, TextSpace
from regionclip.modeling.inference.early_end import LazyRegions
from regionclip.modeling.inference.precision import PRECISIONS, usable_precision
from regionclip.modeling.postprocess import DetectionSelector, build_detection_selector
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.resized import ResizedProposals
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource, offline_rpn_config
from regionclip.modeling.region_encoding import RegionEncoding, scorable_proposals


class CropCLIP(SoftmaxOverProposals):
    """Embeds each proposal as an image of its own, by a frozen CLIP of any size."""

    frozen_parts = ("backbone.",)
    """Key prefixes that need loaded weights."""

    @configurable
    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource,
        selector: DetectionSelector,
        temperature: float,
        classes: ConfiguredClasses | None = None,
        test_classes: ConfiguredClasses | None = None,
        lang_encoder: nn.Module | None = None,
        scales: Sequence[float] = CROP_SCALES,
        resize: tuple[int, int] | None = None,
    ) -> None:
        """Create a detector.

        Args:
            image_encoder: CLIP's, with `embed_images`; its keys start with `backbone`.
            preprocessor: normalizes crops.
            proposal_source: source of the boxes.
            selector: selects detections.
            temperature: divides the cosines of regions and classes (CLSS_TEMP).
            classes: of the config.
            test_classes: of evaluation; None takes `classes`.
            lang_encoder: text encoder, kept for concept features.
            scales: of the crops of a box.
            resize: shortest and longest side of the images of the proposal network; None leaves them as they are.
        """
        super().__init__()
        rpn = rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.backbone = image_encoder.requires_grad_(False)
        self.lang_encoder = lang_encoder
        self.preprocessor, self.selector = preprocessor, selector
        self.proposal_source = ResizedProposals(proposal_source, *resize) if rpn and resize else proposal_source
        self.train_classes, self.test_classes, self.temperature = classes, test_classes, temperature
        self.crops = CropEncoder(self, self._normalize, scales)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        return {
            "image_encoder": build_image_encoder(clip_architecture(cfg)),
            "preprocessor": build_preprocessor(cfg),
            "proposal_source": build_proposal_source(cfg),
            "selector": build_detection_selector(cfg),
            "temperature": cfg.MODEL.CLIP.CLSS_TEMP,
            "classes": build_classes(cfg, "TEXT_EMB_PATH"),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
            "lang_encoder": build_text_encoder_if_wanted(cfg),
            "resize": _rpn_sides(cfg),
        }

    @property
    def architecture(self) -> CLIPArchitecture:
        """The CLIP size."""
        return cast(CLIPArchitecture, self.backbone.architecture)

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the CLIP image encoder."""
        return TextSpace(self.architecture.embedding_dim, self.architecture.name)

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed whole images: normalized RGB [N, 3, resolution, resolution] to [N, D]."""
        return self.backbone.embed_images(images)  # type: ignore[operator]

    def _normalize(self, crops: Tensor) -> Tensor:
        return self.preprocessor(list(crops)).tensor

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode: nothing is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[ImageInput]) -> list[Any]:
        """Return the detections of images: `image`, uint8 [3, H, W] in INPUT.FORMAT, with `height` and `width`."""
        found = [self.detect(encoding, None, Selection()) for encoding in self.encode_images(batched_inputs)]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    @torch.no_grad()
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[RegionEncoding]:
        """Return the pixels of each image with its proposals, computed now or on first access."""
        encodings = [
            RegionEncoding({"image": image["image"]}, partial(self._propose, image), self._regions) for image in inputs
        ]
        if proposals:
            for encoding, found in zip(encodings, self.proposal_source.propose(inputs, self.device), strict=True):
                encoding.proposals = found
        return encodings

    def _propose(self, image: ImageInput) -> Instances:
        return self.proposal_source.propose([image], self.device)[0]

    def _regions(self, maps: dict[str, Tensor], proposals: Instances) -> LazyRegions:
        scorable = scorable_proposals(proposals, self.selector, "MODEL.CLIP.MULTIPLY_RPN_SCORE")
        return LazyRegions(scorable, lambda count: lambda boxes: self.crops.embed(maps["image"], boxes.tensor))

    @torch.no_grad()
    def embed_regions(self, encoding: RegionEncoding, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes in pixels of the network input."""
        return self.crops.embed(encoding.maps["image"], boxes.tensor)

    def prepare_for_inference(
        self, precision: str = "float32", first_stage: str = "res5", when_emulated: str = "replace"
    ) -> Self:
        """Convert the image encoder to a precision, in place; `first_stage` has no meaning for crops."""
        dtype = PRECISIONS[usable_precision(precision, self.device, when_emulated)]
        self.backbone.to(dtype)
        self.preprocessor.dtype = dtype
        return self.eval()

    def export_parts(self) -> Iterator[Part]:
        """Raise a `UserError`: crops are cut outside of any graph."""
        fix = "export a RegionCLIP detector, or run this one in Python"
        raise user_error("export", "a detector that encodes whole images", "CropCLIP", fix)


def _rpn_sides(cfg: CfgNode) -> tuple[int, int] | None:
    """Return the sides of images that the proposal network is made for, if images come in their original size."""
    if cfg.INPUT.MIN_SIZE_TEST or cfg.MODEL.CLIP.CROP_REGION_TYPE != "RPN":
        return None
    rpn_input = offline_rpn_config(cfg).INPUT
    return rpn_input.MIN_SIZE_TEST, rpn_input.MAX_SIZE_TEST
