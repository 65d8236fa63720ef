"""Class logits and box deltas of regions: Detectron2's box predictor with a text-embedding classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.modeling.inference.early_end import Classify, LazyRegions, detect_among, objectness_of
from regionclip.modeling.losses.classification import ClassificationLoss, build_classification_loss
from regionclip.modeling.postprocess import DetectionSelector, build_detection_selector
from regionclip.modeling.region_encoding import require_objectness

Predictions = tuple[Tensor, Tensor]
"""Logits [R, K + 1], background last, and box deltas [R, 4] or [R, 4 * K]."""


class CLIPOutputLayers(FastRCNNOutputLayers):
    """Box predictor of the CLIP detectors, with the published state-dict keys."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        selector: DetectionSelector,
        classification_loss: ClassificationLoss,
        keep_proposal_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        """Create a predictor with a learned classifier; subclasses replace it.

        Args:
            input_shape: channels of the region embeddings.
            selector: selects the detections.
            classification_loss: loss of logits and labels.
            keep_proposal_boxes: at inference return the proposals as boxes (NO_BOX_DELTA).
            kwargs: as for Detectron2's `FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        self.selector = selector
        self.classification_loss = classification_loss
        self.keep_proposal_boxes = keep_proposal_boxes

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Keys that a checkpoint may lack without changing inference: zero background row, unused box deltas."""
        unused = ("bbox_pred.weight", "bbox_pred.bias") if self.keep_proposal_boxes else ()
        return ("cls_bg_score.weight", *unused)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        clip = cfg.MODEL.CLIP
        return {
            **super().from_config(cfg, input_shape),
            "selector": build_detection_selector(cfg),
            "classification_loss": build_classification_loss(clip.FOCAL_SCALED_LOSS, clip.BG_CLS_LOSS_WEIGHT),
            "keep_proposal_boxes": clip.NO_BOX_DELTA or clip.CROP_REGION_TYPE == "GT",
        }

    def losses(self, predictions: Predictions, proposals: Sequence[Instances]) -> dict[str, Tensor]:
        """Return `loss_cls` and `loss_box_reg` of sampled proposals with `gt_classes` and `gt_boxes`."""
        logits, deltas = predictions
        labels = cat([p.gt_classes for p in proposals], dim=0)
        _log_classification_stats(logits, labels)
        boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        # An image without ground truth has only background regions, which the box loss ignores.
        targets = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals], dim=0)
        losses = {
            "loss_cls": self.classification_loss(logits, labels),
            "loss_box_reg": self.box_reg_loss(boxes, targets, deltas, labels),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def scorable(self, proposals: Sequence[Instances], score: float = 0.0) -> list[Instances]:
        """Return the proposals whose score can exceed `score`: the others need not be encoded.

        Raises:
            UserError: the score depends on an objectness that proposals lack.
        """
        for found in proposals:
            require_objectness(found, self.selector, "MODEL.CLIP.MULTIPLY_RPN_SCORE")
        return [p[self.selector.can_exceed(score, objectness_of(p))] for p in proposals]

    def inference(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return the detections of each image and the proposal row of each detection."""
        boxes = self.final_boxes(predictions, proposals)
        probabilities = self.predict_probs(predictions, proposals)
        selected = [
            self.selector(boxes[i], probabilities[i], objectness_of(p), p.image_size) for i, p in enumerate(proposals)
        ]
        return [instances for instances, _ in selected], [rows for _, rows in selected]

    def detect(self, regions: LazyRegions) -> Instances:
        """Return the detections of one image, encoding only as many of its regions as needed."""
        classify, classes = self.classify_as_configured(), self.scoring_layer.out_features
        return detect_among(regions, classify, classes, self.selector)[0]

    def classify_as_configured(self) -> Classify:
        """Return a function that gives boxes and probabilities of the config's classes."""
        predict = self.classifier()

        def classify(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            predictions = predict(embeddings)
            (boxes,), (probabilities,) = (
                method(predictions, [proposals]) for method in (self.final_boxes, self.predict_probs)
            )
            return boxes, probabilities

        return classify

    @property
    def scoring_layer(self) -> nn.Linear:
        """The layer whose rows regions are compared with; learned classifiers also have a background row."""
        return self.cls_score

    def classifier(self) -> Callable[[Tensor], Predictions]:
        """Return a function from region embeddings [R, D] to predictions; shared work is done once."""
        return self

    def final_boxes(self, predictions: Predictions, proposals: Sequence[Instances]) -> list[Tensor]:
        """Return the boxes [R, 4] or [R, 4 * K] of each image: the proposals, with box deltas applied if used."""
        if self.keep_proposal_boxes:
            return [p.proposal_boxes.tensor.clone() for p in proposals]
        return list(self.predict_boxes(predictions, proposals))


class TextEmbeddingOutputLayers(CLIPOutputLayers):
    """Box predictor whose classifier is frozen text embeddings, compared by cosine."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        embeddings: Tensor | None,
        test_embeddings: Tensor | None,
        temperature: float,
        **kwargs: Any,
    ) -> None:
        """Create a predictor.

        Args:
            input_shape: channels D of the region embeddings.
            embeddings: float [K, D]; None leaves random rows to be loaded from a checkpoint.
            test_embeddings: float [K_test, D] used in evaluation mode; None uses `embeddings`.
            temperature: divides the cosines.
            kwargs: as for `CLIPOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        dim = input_shape.channels
        self.temperature = temperature
        self.cls_score = _frozen_rows(self.num_classes, dim, embeddings)
        self.cls_bg_score = _frozen_rows(1, dim, torch.zeros(1, dim))
        self.test_cls_score: nn.Linear | None = None
        if test_embeddings is not None:
            self.test_cls_score = _frozen_rows(len(test_embeddings), dim, test_embeddings)
        given = {"cls_score.weight": embeddings, "test_cls_score.weight": test_embeddings}
        self.configured_weights = tuple(name for name, value in given.items() if value is not None)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments of the constructor; reads the embedding files."""
        clip, dim = cfg.MODEL.CLIP, cfg.MODEL.CLIP.TEXT_EMB_DIM
        rows = {"TEXT_EMB_PATH": cfg.MODEL.ROI_HEADS.NUM_CLASSES, "OPENSET_TEST_TEXT_EMB_PATH": None}
        embeddings, test_embeddings = (
            load_class_embeddings(clip[key], rows=count, dim=dim, key=f"MODEL.CLIP.{key}") if clip[key] else None
            for key, count in rows.items()
        )
        return {
            **super().from_config(cfg, ShapeSpec(channels=dim)),
            "embeddings": embeddings,
            "test_embeddings": test_embeddings,
            "temperature": clip.CLSS_TEMP,
        }

    def forward(self, x: Tensor) -> Predictions:
        """Classify region embeddings [R, D], not normalized; box deltas use them as they are."""
        return self.classifier()(x)

    @property
    def scoring_layer(self) -> nn.Linear:
        """The layer of the class embeddings: in evaluation mode the test embeddings, if there are any."""
        return self.test_cls_score if self.test_cls_score is not None and not self.training else self.cls_score

    def classifier(self) -> Callable[[Tensor], Predictions]:
        """Return a function from region embeddings [R, D] to predictions; class embeddings are normalized once."""
        classes = F.normalize(self.scoring_layer.weight, dim=1).T  # [D, K]
        return lambda x: (self.logits(x, lambda unit: unit @ classes), self.bbox_pred(x))

    def logits(self, x: Tensor, classifier: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits [R, K + 1], background last, of region embeddings [R, D], not normalized.

        Args:
            x: region embeddings.
            classifier: maps unit vectors [R, D] to cosines [R, K] with the classes.
        """
        unit = F.normalize(x, dim=1)
        # The background row is zero as published, and is not normalized if a checkpoint has another.
        return torch.cat([classifier(unit), self.cls_bg_score(unit)], dim=1).div_(self.temperature)

    def refine(self, x: Tensor, proposals: Boxes) -> Tensor:
        """Return the class-agnostic boxes [R, 4] of regions: the proposals, with box deltas applied if used.

        Args:
            x: region embeddings [R, D].
            proposals: in pixels of the network input.
        """
        if self.keep_proposal_boxes:
            return proposals.tensor.clone()
        return self.box2box_transform.apply_deltas(self.bbox_pred(x), proposals.tensor)


def build_box_predictor(cfg: CfgNode, input_shape: ShapeSpec) -> CLIPOutputLayers:
    """Return the predictor that USE_TEXT_EMB_CLASSIFIER selects."""
    layers = TextEmbeddingOutputLayers if cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER else CLIPOutputLayers
    return layers(cfg, input_shape)


def _frozen_rows(rows: int, dim: int, values: Tensor | None) -> nn.Linear:
    layer = nn.Linear(dim, rows, bias=False).requires_grad_(False)
    if values is not None:
        layer.weight.copy_(values)
    return layer
