"""The three graphs of the detector for export, for one image each: backbone, RPN and RoI head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from detectron2.modeling import FPN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from regionclip.engine.export.operators import best_boxes, pool_regions, top_rows
from regionclip.errors import user_error
from regionclip.methods.regionclip.box_predictor import TextEmbeddingOutputLayers
from regionclip.methods.regionclip.heads import CLIPRes5ROIHeads
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.detector import Part
from regionclip.modeling.postprocess import report_probability, report_score
from regionclip.modeling.preprocessing import ImagePreprocessor
from regionclip.modeling.suppression import AcrossClasses, HardSuppression

if TYPE_CHECKING:
    from regionclip.methods.regionclip.detector import CLIPFastRCNN

LARGEST = 2**31 - 1
"""A limit that is never reached."""

LOWEST = torch.finfo(torch.float32).min

SMALLEST_SIDE, LARGEST_SIDE = 65, 8192
"""Image sides in pixels. From 65 the coarsest FPN map has two cells; torch specializes a size of one."""


def export_parts(model: CLIPFastRCNN) -> Iterator[Part]:
    """Yield `backbone`, `rpn` if the detector has one, and `head`, with example inputs.

    Raises:
        UserError: the head or its options have no counterpart in ONNX.
    """
    head = HeadGraph(model)
    rows, columns, regions, classes = (Dim(name, min=2) for name in ("rows", "columns", "regions", "classes"))
    image = torch.zeros(3, 160, 224)
    sides = {axis: Dim(name, min=SMALLEST_SIDE, max=LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
    backbone = BackboneGraph(model)
    yield Part("backbone", backbone, {"image": image}, {"image": sides}, ("features",))
    if model.offline_backbone is not None:
        _require_rpn(model)
        yield Part("rpn", RPNGraph(model), {"image": image}, {"image": sides}, ("boxes", "objectness"))
    dim = model.text_space.dim
    inputs = {
        "features": backbone(image).detach().contiguous(),
        "proposals": torch.tensor([[0.0, 0, 60, 60], [9, 9, 100, 80], [5, 50, 99, 99]]),
        "objectness": torch.ones(3),
        "class_embeddings": torch.eye(max(dim, 5))[:5, :dim].contiguous(),
        "image_size": torch.tensor([160.0, 224.0]),
    }
    sizes: dict[str, dict[int, Any]] = {
        "features": {2: rows, 3: columns},
        "proposals": {0: regions},
        "objectness": {0: regions},
        "class_embeddings": {0: classes},
        "image_size": {},
    }
    yield Part("head", head, inputs, sizes, ("boxes", "scores", "classes"))


def _require_rpn(model: CLIPFastRCNN) -> None:
    """Raise a `UserError` for proposals that no graph computes."""
    if not isinstance(model.offline_proposal_generator, RPN):
        actual = type(model.offline_proposal_generator).__name__
        fix = "name the YAML of an RPN, or export with MODEL.CLIP.CROP_REGION_TYPE NONE, for boxes of your own"
        raise user_error("MODEL.CLIP.OFFLINE_RPN_CONFIG", "an RPN", actual, fix)


class BackboneGraph(nn.Module):
    """From an image to the feature map that RoIAlign pools from."""

    def __init__(self, model: CLIPFastRCNN) -> None:
        """Use the image encoder of a detector with a C4 head."""
        super().__init__()
        image_encoder = clip_image_encoder(model.backbone)
        assert image_encoder is not None
        self.image_encoder, self.preprocessor = image_encoder, model.preprocessor
        heads = cast(CLIPRes5ROIHeads, model.roi_heads)
        self.feature: str = heads.in_features[0]

    def forward(self, image: Tensor) -> Tensor:
        """Map float RGB [3, H, W] with values in [0, 255] to [1, C, H / stride, W / stride], floored."""
        return self.image_encoder.feature_maps(_as_batch(self.preprocessor, image), [self.feature])[self.feature]


class RPNGraph(nn.Module):
    """RPN: from an image to class-agnostic proposals."""

    def __init__(self, model: CLIPFastRCNN) -> None:
        """Use the offline backbone and RPN of a detector."""
        super().__init__()
        assert model.offline_backbone is not None
        assert isinstance(model.offline_proposal_generator, RPN)
        assert model.offline_preprocessor is not None
        self.backbone, self.rpn = model.offline_backbone, model.offline_proposal_generator
        self.preprocessor = model.offline_preprocessor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map float RGB [3, H, W] to boxes [R, 4], xyxy in its pixels, and objectness logits [R], best first."""
        rpn = self.rpn
        maps = _maps(self.backbone, _as_batch(self.preprocessor, image))
        features = [maps[name] for name in rpn.in_features]
        logits, deltas = rpn.rpn_head(features)
        boxes, scores = [], []
        for level, (level_logits, level_deltas) in enumerate(zip(logits, deltas, strict=True)):
            anchors = _anchors(rpn.anchor_generator, level, features[level])
            flat_logits = level_logits[0].permute(1, 2, 0).flatten()  # [A, H, W] -> [H * W * A]
            flat_deltas = level_deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)  # [H * W * A, 4]
            rows = top_rows(flat_logits, rpn.pre_nms_topk[False])
            boxes.append(rpn.box2box_transform.apply_deltas(flat_deltas[rows], anchors[rows]))
            scores.append(flat_logits[rows])
        height, width = (torch.full((), side, dtype=image.dtype) for side in image.shape[1:])
        candidates = _clip(torch.cat(boxes), height, width)
        # Levels act as classes in NMS: [L, P], where P is over all levels.
        table = torch.stack([self._only(scores, level) for level in range(len(scores))])
        sides = candidates[:, 2:] - candidates[:, :2]
        large = (sides > rpn.min_box_size).all(dim=1)
        table = torch.where(large, table, LOWEST)
        found = best_boxes(candidates, table, rpn.nms_thresh, LOWEST, rpn.post_nms_topk[False])
        return candidates[found[:, 1]], torch.cat(scores)[found[:, 1]]

    @staticmethod
    def _only(scores: list[Tensor], level: int) -> Tensor:
        return torch.cat([part if i == level else torch.full_like(part, LOWEST) for i, part in enumerate(scores)])


class HeadGraph(nn.Module):
    """From regions of the feature map and class embeddings to detections."""

    def __init__(self, model: CLIPFastRCNN) -> None:
        """Use the RoI head of a detector.

        Raises:
            UserError: its options have no counterpart in ONNX.
        """
        super().__init__()
        heads = _checked_head(model.roi_heads)
        self.encoder = heads.encoder  # not an nn.Module, so its modules are registered by name
        self.last_stage, self.attention_pool = self.encoder.last_stage, self.encoder.attention_pool
        self.predictor: TextEmbeddingOutputLayers = heads.box_predictor
        (self.layer,) = heads.pooler.level_poolers
        self.iou_threshold = cast(HardSuppression, self.predictor.selector.suppression).iou_threshold

    def forward(
        self, features: Tensor, proposals: Tensor, objectness: Tensor, class_embeddings: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            features: [1, C, h, w] from the backbone.
            proposals: [R, 4], xyxy in pixels of the image.
            objectness: [R] logits.
            class_embeddings: [K, D], of any norm.
            image_size: float [2], height and width of the image.

        Returns:
            Boxes [M, 4], scores [M], best first, and classes [M].
        """
        selector = self.predictor.selector
        pooled = pool_regions(
            features, proposals, self.layer.output_size[0], self.layer.spatial_scale, self.layer.sampling_ratio
        )
        embeddings = self.encoder.embed(self.last_stage(pooled))
        unit_classes = F.normalize(class_embeddings, dim=1)
        probabilities = self.predictor.logits(embeddings, lambda unit: unit @ unit_classes.T).softmax(dim=1)[:, :-1]
        if not self.predictor.keep_proposal_boxes:
            deltas = self.predictor.bbox_pred(embeddings)
            proposals = self.predictor.box2box_transform.apply_deltas(deltas, proposals)
        boxes = _clip(proposals, image_size[0], image_size[1])
        scorable = selector.fusion.scorable(objectness)
        scores = selector.fusion(probabilities, torch.where(scorable, objectness, 0)[:, None].expand_as(probabilities))
        scores = torch.where(scorable[:, None], scores, LOWEST).T  # [K, R]
        limit = LARGEST if selector.max_detections is None else selector.max_detections
        found = best_boxes(boxes, scores, self.iou_threshold, selector.score_threshold, limit)
        category, row = found[:, 0], found[:, 1]
        known = probabilities[row, category]
        if selector.reported_score is report_probability:
            order = top_rows(known, LARGEST)  # ONNX has no sort operator
            return boxes[row[order]], known[order], category[order]
        # Upstream's variant also reports the probability, but keeps the order.
        reported = scores[category, row] if selector.reported_score is report_score else known
        return boxes[row], reported, category


def _maps(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the maps of a backbone; for an FPN, by Detectron2's steps with explicit sizes.

    Detectron2 upsamples a map and adds the next finer one, whose size torch cannot prove to be equal.
    """
    if not isinstance(backbone, FPN):
        return backbone(images)
    multiple = backbone.size_divisibility
    images = F.pad(images, (0, -images.shape[3] % multiple, 0, -images.shape[2] % multiple))
    stages = backbone.bottom_up(images)
    total: Tensor | None = None
    results: list[Tensor] = []
    for name, lateral, output in zip(
        reversed(backbone.in_features), backbone.lateral_convs, backbone.output_convs, strict=True
    ):
        finer = lateral(stages[name])
        total = finer if total is None else finer + F.interpolate(total, finer.shape[2:], mode="nearest")
        if backbone._fuse_type == "avg" and results:
            total = total / 2
        results.insert(0, output(total))
    if backbone.top_block is not None:
        results.extend(backbone.top_block(results[backbone._out_features.index(backbone.top_block.in_feature)]))
    return dict(zip(backbone._out_features, results, strict=True))


def _anchors(generator: DefaultAnchorGenerator, level: int, feature: Tensor) -> Tensor:
    """Return Detectron2's anchors [h * w * A, 4]; its own code cannot be traced with dynamic sizes."""
    stride, cells = generator.strides[level], list(generator.cell_anchors)[level]  # [A, 4]
    height, width = feature.shape[2:]
    ys, xs = ((torch.arange(side) + generator.offset) * stride for side in (height, width))
    xs, ys = xs[None].expand(height, width), ys[:, None].expand(height, width)
    corners = torch.stack([xs, ys, xs, ys], dim=2).to(cells.dtype)  # [h, w, 4]
    return (corners[:, :, None] + cells).reshape(-1, 4)


def _checked_head(heads: nn.Module) -> CLIPRes5ROIHeads:
    if not isinstance(heads, CLIPRes5ROIHeads) or not isinstance(heads.box_predictor, TextEmbeddingOutputLayers):
        fix = "export a RegionCLIP detector with a C4 head and MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER True"
        raise user_error("MODEL.ROI_HEADS.NAME", "CLIPRes5ROIHeads on words", type(heads).__name__, fix)
    predictor = heads.box_predictor
    suppression = predictor.selector.suppression
    if not isinstance(suppression, HardSuppression):
        is_across = isinstance(suppression, AcrossClasses)
        key = f"MODEL.ROI_HEADS.{'NMS_ACROSS_CLASSES' if is_across else 'SOFT_NMS_ENABLED'}"
        raise user_error(key, "False: exported graphs have hard NMS within classes", "True", f"add {key} False")
    if not predictor.keep_proposal_boxes and predictor.bbox_pred.out_features != 4:
        key = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
        raise user_error(key, "True: words have no boxes of their own", "False", f"add {key} True")
    return heads


def _as_batch(preprocessor: ImagePreprocessor, image: Tensor) -> Tensor:
    """Return the normalized image [1, 3, H, W]."""
    if preprocessor.flip_channels:
        image = image.flip(0)
    if preprocessor.unit_range:
        image = image / 255.0
    return ((image - preprocessor.mean) / preprocessor.std)[None]


def _clip(boxes: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return boxes [R, 4], xyxy, clipped to the image."""
    x1, y1, x2, y2 = boxes.clamp(min=0).unbind(dim=1)
    return torch.stack([x1.minimum(width), y1.minimum(height), x2.minimum(width), y2.minimum(height)], dim=1)
