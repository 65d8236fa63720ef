"""CORA's localizer: a DETR whose queries are conditioned on class names, on a frozen CLIP ResNet (stage B)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torchvision.ops import box_convert

from regionclip.config.resolve import clip_architecture
from regionclip.engine.class_names import build_classes
from regionclip.errors import user_error
from regionclip.methods.cora.classes import NovelClasses, build_pseudo_classes
from regionclip.methods.cora.encoding import CORAEncoding, LocalizerEncoding
from regionclip.methods.cora.encodings import encode_grid, padded_size, padding_of, valid_cells
from regionclip.methods.cora.frozen_clip import OnFrozenCLIP
from regionclip.methods.cora.heads import RegionPromptHead, class_probabilities
from regionclip.methods.cora.losses import LocalizerLosses
from regionclip.methods.cora.matching import HungarianMatcher, LayerOutput, MatchingWeights, Targets
from regionclip.methods.cora.pooling import boxes_of_images
from regionclip.methods.cora.prematching import draw_split, match_classes, match_halves
from regionclip.methods.cora.pseudo_boxes import classes_of_batch
from regionclip.methods.cora.transformer import MLP, DABTransformer, predict_boxes
from regionclip.modeling.backbones.clip_resnet import CLIPResNetBackbone
from regionclip.modeling.build import build_text_encoder_if_wanted
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.detector import Classifier, Part, Selection
from regionclip.modeling.inference.early_end import LazyRegions, detect_selected
from regionclip.modeling.postprocess import DetectionSelector, ProbabilityTimesObjectness
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.suppression import build_suppression

LAYER4_STRIDE = 32
"""The backbone pads smaller images to it."""


@dataclass(frozen=True)
class LocalizerSettings:
    """Numbers of MODEL.CORA that the forward pass needs."""

    split_probability: float
    """Of class splitting in an iteration (`split_class_p`)."""
    with_mean_token: bool
    """Pre-match with the attention pool's mean token (PREMATCHING_POOL `exact`); the published system has none."""
    grid_temperature: float
    temperature: float
    """Divides the cosines of regions and classes (CLSS_TEMP)."""


class CORA(OnFrozenCLIP):
    """Class-agnostic localizer with anchor pre-matching; regions are classified with the region prompt."""

    @configurable
    def __init__(
        self,
        *,
        backbone: CLIPResNetBackbone,
        preprocessor: ImagePreprocessor,
        transformer: DABTransformer,
        queries: int,
        input_channels: int,
        embedding_dim: int,
        text_bottleneck: int,
        group_norm: bool,
        settings: LocalizerSettings,
        losses: LocalizerLosses,
        selector: DetectionSelector,
        novel: NovelClasses,
        classes: ConfiguredClasses | None = None,
        test_classes: ConfiguredClasses | None = None,
        pseudo_classes: ConfiguredClasses | None = None,
        lang_encoder: nn.Module | None = None,
    ) -> None:
        """Create a localizer.

        Args:
            backbone: frozen CLIP ResNet with its attention pool, whose positional embedding is the region prompt.
            preprocessor: normalizes images.
            transformer: encoder and decoder.
            queries: number Q of anchors.
            input_channels: of `res4`.
            embedding_dim: width D of the joint space.
            text_bottleneck: hidden width of the projection of class embeddings (`condition_bottleneck`).
            group_norm: normalize the encoder's input (the published system does with fewer than 25 epochs).
            settings: of the forward pass.
            losses: of training.
            selector: selects detections.
            novel: prior of novel classes at inference.
            classes: of training.
            test_classes: of evaluation; None takes `classes`.
            pseudo_classes: further ones of pseudo boxes, each in the batches that have it (CORA+).
            lang_encoder: text encoder, kept for concept features.
        """
        super().__init__()
        width = 256
        self.backbone = backbone.requires_grad_(False)
        self.preprocessor = preprocessor
        self.transformer = transformer
        self.query_embed = nn.Embedding(queries, 4)
        project = [nn.Conv2d(input_channels, width, 1), *([nn.GroupNorm(32, width)] if group_norm else [])]
        self.input_proj = nn.ModuleList([nn.Sequential(*project)])
        self.objectness_embed = nn.Linear(width, 1)
        self.text_proj = MLP(embedding_dim, text_bottleneck, width)
        self.lang_encoder = lang_encoder.requires_grad_(False) if lang_encoder is not None else None
        self.roi_heads = RegionPromptHead(grid=backbone.architecture.attention_grid)
        self.roi_heads.borrow(backbone)
        self.settings, self.losses, self.selector, self.novel = settings, losses, selector, novel
        self.train_classes, self.test_classes, self.pseudo_classes = classes, test_classes, pseudo_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        cora, backbone, size = cfg.MODEL.CORA, build_backbone(cfg), clip_architecture(cfg)
        terms = ("OBJECTNESS", "L1", "GIOU")
        cost, loss = (MatchingWeights(*(cora[name][term] for term in terms)) for name in ("COST", "LOSS"))
        return {
            "backbone": backbone,
            "preprocessor": build_preprocessor(cfg),
            "transformer": DABTransformer(
                *(cora.ENC_LAYERS, cora.DEC_LAYERS, 256, cora.NHEADS, cora.DIM_FEEDFORWARD, cora.DROPOUT)
            ),
            "queries": cora.NUM_QUERIES,
            "input_channels": size.stage_channels["res4"],
            "embedding_dim": size.embedding_dim,
            "text_bottleneck": cora.TEXT_BOTTLENECK,
            "group_norm": cora.INPUT_GROUP_NORM,
            "settings": LocalizerSettings(
                cora.SPLIT_PROBABILITY,
                cora.PREMATCHING_POOL == "exact",
                cora.GRID_TEMPERATURE,
                cfg.MODEL.CLIP.CLSS_TEMP,
            ),
            "losses": LocalizerLosses(HungarianMatcher(cost), loss),
            "selector": _build_selector(cfg),
            "novel": NovelClasses.from_config(cfg),
            "classes": build_classes(cfg, "TEXT_EMB_PATH", cfg.MODEL.ROI_HEADS.NUM_CLASSES),
            "test_classes": build_classes(cfg, "OPENSET_TEST_TEXT_EMB_PATH"),
            "pseudo_classes": build_pseudo_classes(cfg),
            "lang_encoder": build_text_encoder_if_wanted(cfg),
        }

    def forward(self, batched_inputs: Sequence[ImageInput]) -> Any:
        """Return a dict of losses in training mode, and detections in evaluation mode.

        Args:
            batched_inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT; `instances` with `gt_boxes` and
                `gt_classes` in training; `height` and `width` of the original image in evaluation.
        """
        if self.training:
            return self._losses(batched_inputs)
        found = [self.detect(encoding, None, Selection()) for encoding in self.encode_images(batched_inputs)]
        return GeneralizedRCNN._postprocess(found, batched_inputs, [instances.image_size for instances in found])

    def _losses(self, batched_inputs: Sequence[ImageInput]) -> dict[str, Tensor]:
        classes = self.train_classes
        assert classes is not None, "training_problems() was not asked"
        encoding = self._encode(batched_inputs)
        targets = [_targets_of(image["instances"].to(self.device)) for image in batched_inputs]
        pseudo = None if self.pseudo_classes is None else self.pseudo_classes.embeddings
        text, targets = classes_of_batch(classes.embeddings, pseudo, targets)
        anchors = self.embed_anchors(encoding)  # [N, Q, D]
        storage = get_event_storage()
        if draw_split(storage.iter, self.settings.split_probability):
            second = torch.rand(len(text), device=self.device) > 0.5
            of_queries = match_halves(anchors, text, second)  # [2 N, Q]
            encoding, targets = encoding.repeated(2), targets * 2
        else:
            of_queries = match_classes(anchors, text)
        layers = self.decode(encoding, of_queries, text)
        losses, matched = self.losses(layers, of_queries, targets)
        storage.put_scalar("matched_objects", matched)
        return losses

    def _encode(self, inputs: Sequence[ImageInput]) -> LocalizerEncoding:
        images = self.preprocessor([image["image"] for image in inputs])
        with torch.no_grad():
            maps = self.backbone(images.tensor)
        layer3, layer4 = maps["res4"], maps["res5"]
        padding = padding_of(images.image_sizes, padded_size(images.tensor, LAYER4_STRIDE), self.device)
        cells3, cells4 = (valid_cells(padding, (layer.shape[2], layer.shape[3])) for layer in (layer3, layer4))
        position = encode_grid(cells3.padding, self.settings.grid_temperature).flatten(2).transpose(1, 2)
        tokens = self.input_proj[0](layer3).flatten(2).transpose(1, 2)  # [N, 256, H, W] -> [N, H * W, 256]
        memory = self.transformer.encoder(tokens, position, cells3.padding.flatten(1))
        return LocalizerEncoding(layer3, layer4, cells3, cells4, memory, position, list(images.image_sizes))

    @torch.no_grad()
    def embed_anchors(self, encoding: LocalizerEncoding) -> Tensor:
        """Return the region embeddings [N, Q, D] of the anchors in each image, by cheap pooling of `layer4`."""
        anchors = self.query_embed.weight.sigmoid().expand(len(encoding), -1, -1)
        boxes = boxes_of_images(anchors, encoding.cells4)
        embeddings = self.roi_heads.embed_cheaply(encoding.layer4, boxes, with_mean_token=self.settings.with_mean_token)
        return embeddings.unflatten(0, (len(encoding), -1))

    def decode(self, encoding: LocalizerEncoding, classes: Tensor, text: Tensor) -> list[LayerOutput]:
        """Return objectness [N, Q] and boxes [N, Q, 4] of each decoder layer, for queries of classes [N, Q].

        Args:
            encoding: of N images.
            classes: int64 [N, Q], rows of `text`.
            text: unit class embeddings [K, D].
        """
        anchors = self.query_embed.weight.expand(len(classes), -1, -1)
        content = self.text_proj(text)[classes]  # [N, Q, 256]
        decoder = self.transformer.decoder
        padding = encoding.cells3.padding.flatten(1)
        decoded = decoder(content, anchors, encoding.memory, encoding.memory_position, padding)
        boxes = predict_boxes(list(decoder.bbox_embed), decoded)
        logits = self.objectness_embed(decoded.states)[..., 0]
        return [LayerOutput(*layer) for layer in zip(logits, boxes, strict=True)]

    @torch.no_grad()
    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> list[CORAEncoding]:
        """Return maps and encoded cells of each image; class names come with `detect`, and condition the decoder."""
        batch = self._encode(inputs)
        return [CORAEncoding(batch[i], self.embed_anchors, self._propose) for i in range(len(batch))]

    def _propose(self, encoding: CORAEncoding) -> Instances:
        return self.localize(encoding, self.configured_classes())

    @torch.no_grad()
    def localize(self, encoding: CORAEncoding, classifier: Classifier) -> Instances:
        """Return the decoder's boxes for a classifier's classes: `proposal_boxes`, `objectness_logits`, best first.

        Boxes are in pixels of the network input, and not clipped to it.
        """
        (size,) = encoding.image.image_sizes
        prior = self.novel.prior(classifier.names, self.device)
        classes = match_classes(encoding.anchor_embeddings, classifier.embeddings, prior, self.settings.temperature)
        (logits,), (boxes,) = self.decode(encoding.image, classes, classifier.embeddings)[-1]
        order = logits.argsort(descending=True, stable=True)
        scale = boxes.new_tensor([size[1], size[0]] * 2)
        corners = box_convert(boxes[order], "cxcywh", "xyxy") * scale
        return Instances(size, proposal_boxes=Boxes(corners), objectness_logits=logits[order])

    @torch.no_grad()
    def detect(self, encoding: CORAEncoding, classifier: Classifier | None, selection: Selection) -> Instances:
        """Return the detections of one image; see `OpenVocabularyDetector.detect`.

        The class that a query was conditioned on has no part in its score, which is the product of the probability
        of each class and the objectness.
        """
        classifier = classifier or self.configured_classes()
        known = classifier
        regions = LazyRegions(self.localize(encoding, known), lambda count: self._encoder_of(encoding, count))

        def classify(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            return proposals.proposal_boxes.tensor, class_probabilities(embeddings, known, self.settings.temperature)

        found = detect_selected(regions, classify, known.classes, self.selector, selection)
        encoding.encoded_regions = regions.encoded
        return found

    def _encoder_of(self, encoding: CORAEncoding, count: int) -> Any:
        encode = self.roi_heads.encoder_of_image({"res4": encoding.image.layer3}, count)
        return lambda boxes: encode(self._on_cells(encoding, boxes))

    def _on_cells(self, encoding: CORAEncoding, boxes: Boxes) -> Boxes:
        """Return boxes in cells of `layer3`, from pixels of the network input: as many as the unpadded image has."""
        (height, width), cells = encoding.image.image_sizes[0], encoding.image.cells3
        scale = torch.stack([cells.columns[0] / width, cells.rows[0] / height] * 2)
        return Boxes(boxes.tensor * scale)

    @torch.no_grad()
    def embed_regions(self, encoding: CORAEncoding, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes in pixels of the network input."""
        return self.roi_heads.encode({"res4": encoding.image.layer3}, [self._on_cells(encoding, boxes)])

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return the softmax [R, K + 1] over all classes and one with cosine 0; the last column has the rest."""
        known = classifier or self.configured_classes()
        return class_probabilities(embeddings, known, self.settings.temperature)

    def export_parts(self) -> Iterator[Part]:
        """Raise a `UserError`: the decoder depends on class names."""
        fix = "export a RegionCLIP detector, or run this one in Python"
        raise user_error("export", "a detector whose boxes do not depend on class names", "CORA", fix)


def _targets_of(instances: Instances) -> Targets:
    """Return boxes relative to the image, and labels."""
    height, width = instances.image_size
    boxes = box_convert(instances.gt_boxes.tensor, "xyxy", "cxcywh")
    return Targets(boxes / boxes.new_tensor([width, height] * 2), instances.gt_classes)


def _build_selector(cfg: CfgNode) -> DetectionSelector:
    heads, cora, limit = cfg.MODEL.ROI_HEADS, cfg.MODEL.CORA, cfg.TEST.DETECTIONS_PER_IMAGE
    return DetectionSelector(
        score_threshold=heads.SCORE_THRESH_TEST,
        max_detections=None if limit < 0 else limit,
        fusion=ProbabilityTimesObjectness(cora.OBJECTNESS_POWER),
        suppression=build_suppression(cfg),
        clips_boxes=cora.CLIP_BOXES,
    )
