"""Region prompting: CLIP's attention pool learns what regions look like (CORA, section 3.2; stage A)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.engine.class_names import build_classes
from regionclip.errors import user_error
from regionclip.methods.cora.checkpoints import PROMPT
from regionclip.methods.cora.encodings import ValidCells, padded_size, padding_of, valid_cells
from regionclip.methods.cora.frozen_clip import OnFrozenCLIP
from regionclip.methods.cora.heads import RegionPromptHead
from regionclip.modeling.backbones.clip_resnet import CLIPResNetBackbone
from regionclip.modeling.build import build_text_encoder_if_wanted
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.configured_detector import SoftmaxOverProposals
from regionclip.modeling.detector import Part, Selection
from regionclip.modeling.inference.early_end import LazyRegions
from regionclip.modeling.postprocess import DetectionSelector, ProbabilityOnly
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.build import build_proposal_source, rpn_of
from regionclip.modeling.proposals.sources import ImageInput, ProposalSource
from regionclip.modeling.region_encoding import RegionEncoding
from regionclip.modeling.suppression import NoSuppression

LAYER3_STRIDE = 16
"""The backbone pads smaller images to it."""


class RegionPromptCLIP(SoftmaxOverProposals, OnFrozenCLIP):
    """Frozen CLIP ResNet that classifies given boxes; the positional embedding of its attention pool is trained."""

    @configurable
    def __init__(
        self,
        *,
        backbone: CLIPResNetBackbone,
        preprocessor: ImagePreprocessor,
        proposal_source: ProposalSource,
        selector: DetectionSelector,
        temperature: float,
        classes: ConfiguredClasses | None = None,
        test_classes: ConfiguredClasses | None = None,
        lang_encoder: nn.Module | None = None,
    ) -> None:
        """Create a classifier of regions.

        Args:
            backbone: CLIP ResNet with its attention pool.
            preprocessor: normalizes images.
            proposal_source: source of the boxes in evaluation.
            selector: selects (box, class) pairs.
            temperature: divides the cosines of regions and classes (CLSS_TEMP).
            classes: of training.
            test_classes: of evaluation; None takes `classes`.
            lang_encoder: text encoder, kept for concept features.
        """
        super().__init__()
        self.lang_encoder = lang_encoder.requires_grad_(False) if lang_encoder is not None else None
        self.backbone = backbone.requires_grad_(False)
        backbone.get_parameter(PROMPT).requires_grad_(True)
        rpn = rpn_of(proposal_source)
        self.offline_backbone = rpn.backbone if rpn else None
        self.offline_proposal_generator = rpn.proposal_generator if rpn else None
        self.offline_preprocessor = rpn.preprocessor if rpn else None
        self.preprocessor, self.proposal_source, self.selector = preprocessor, proposal_source, selector
        self.roi_heads = RegionPromptHead(grid=backbone.architecture.attention_grid)
        self.roi_heads.borrow(backbone)
        self.train_classes, self.test_classes, self.temperature = classes, test_classes, temperature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        limit = cfg.TEST.DETECTIONS_PER_IMAGE
        return {
            "backbone": build_backbone(cfg),
            "preprocessor": build_preprocessor(cfg),
            "proposal_source": build_proposal_source(cfg),
            "selector": DetectionSelector(
                score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
                max_detections=None if limit < 0 else limit,
                fusion=ProbabilityOnly(),
                suppression=NoSuppression(),
            ),
            "temperature": cfg.MODEL.CLIP.CLSS_TEMP,
            "classes": build_classes(cfg, "TEXT_EMB_PATH", cfg.MODEL.ROI_HEADS.NUM_CLASSES),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
            "lang_encoder": build_text_encoder_if_wanted(cfg),
        }

    def forward(self, batched_inputs: Sequence[ImageInput]) -> Any:
        """Return a dict of losses in training mode, and detections in evaluation mode.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `instances` with `gt_boxes` and
                `gt_classes` in training and for ground-truth boxes; `height` and `width` of the original image.
        """
        if self.training:
            return {"loss_region_prompt": self._loss(batched_inputs)}
        found = [self.detect(encoding, None, Selection()) for encoding in self.encode_images(batched_inputs)]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    def _loss(self, inputs: Sequence[ImageInput]) -> Tensor:
        """Return the cross entropy over the classes, without background; a zero with gradient if there are no boxes."""
        classes = self.train_classes
        assert classes is not None, "training_problems() was not asked"
        targets = [image["instances"].to(self.device) for image in inputs]
        with torch.no_grad():
            features, cells = self._features(inputs)
            boxes = [
                _on_cells(target.gt_boxes, target.image_size, cells, number) for number, target in enumerate(targets)
            ]
            maps = self.roi_heads.encoder.region_maps([features], boxes)  # [R, C, S, S]
        if not len(maps):
            return self.backbone.get_parameter(PROMPT).sum() * 0
        embeddings = F.normalize(self.roi_heads.encoder.embed(maps), dim=1)
        labels = torch.cat([target.gt_classes for target in targets])
        return F.cross_entropy(classes(embeddings) / self.temperature, labels)

    def _features(self, inputs: Sequence[ImageInput]) -> tuple[Tensor, ValidCells]:
        images = self.preprocessor([image["image"] for image in inputs])
        features = self.backbone(images.tensor)["res4"]
        padding = padding_of(images.image_sizes, padded_size(images.tensor, LAYER3_STRIDE), self.device)
        return features, valid_cells(padding, (features.shape[2], features.shape[3]))

    @torch.no_grad()
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[PromptEncoding]:
        """Return the feature map of each image with its boxes, found now or on first access."""
        features, cells = self._features(inputs)
        encodings = []
        for number, image in enumerate(inputs):
            own = ValidCells(*(part[number : number + 1] for part in cells))
            size = (image["image"].shape[1], image["image"].shape[2])
            maps, propose = {"res4": features[number : number + 1]}, partial(self._propose, image)
            encodings.append(PromptEncoding(maps, propose, partial(self._regions, own, size), own, size))
        if proposals:
            for encoding in encodings:
                _ = encoding.proposals
        return encodings

    def _propose(self, image: ImageInput) -> Instances:
        return self.proposal_source.propose([image], self.device)[0]

    def _regions(
        self, cells: ValidCells, size: tuple[int, int], maps: dict[str, Tensor], proposals: Instances
    ) -> LazyRegions:
        def make_encoder(count: int) -> Any:
            encode = self.roi_heads.encoder_of_image(maps, count)
            return lambda boxes: encode(_on_cells(boxes, size, cells))

        return LazyRegions(proposals, make_encoder)

    @torch.no_grad()
    def embed_regions(self, encoding: PromptEncoding, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes in pixels of the network input."""
        return self.roi_heads.encode(encoding.maps, [_on_cells(boxes, encoding.size, encoding.cells)])

    def export_parts(self) -> Iterator[Part]:
        """Raise a `UserError`: this stage is not a detector of its own."""
        fix = "export a RegionCLIP detector"
        raise user_error("export", "a detector", "RegionPromptCLIP, which classifies given boxes", fix)


class PromptEncoding(RegionEncoding):
    """Feature map and boxes of one image, with its valid cells."""

    def __init__(
        self, maps: dict[str, Tensor], propose: Any, make_regions: Any, cells: ValidCells, size: tuple[int, int]
    ) -> None:
        """Store the feature map [1, C, H, W], and the size (height, width) of the network input."""
        super().__init__(maps, propose, make_regions)
        self.cells, self.size = cells, size


def _on_cells(boxes: Boxes, size: tuple[int, int], cells: ValidCells, number: int = 0) -> Boxes:
    """Return boxes in cells of a map, from pixels of a network input of `size` (height, width)."""
    height, width = size
    scale = torch.stack([cells.columns[number] / width, cells.rows[number] / height] * 2)
    return Boxes(boxes.tensor * scale)
