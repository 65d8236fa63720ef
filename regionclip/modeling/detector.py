"""The contract of open-vocabulary detectors: all that predictor, batch, evaluation, features and export know of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from regionclip.errors import user_error
from regionclip.modeling.proposals.sources import ImageInput


@dataclass(frozen=True)
class Selection:
    """Which detections of an image are wanted; None is what the config says."""

    threshold: float | None = None
    """Lowest reported score."""
    topk: int | None = None
    """Most detections."""
    per_class: bool = True
    """Suppress duplicates within each class, as published; else each object keeps its best class."""


@dataclass(frozen=True)
class TextSpace:
    """The CLIP whose text embeddings regions are compared with."""

    dim: int
    """Width D of the joint space."""
    clip: str
    """Name of its size."""


@dataclass(frozen=True)
class Part:
    """A graph for export with example inputs, of whose axes some can have any size."""

    name: str
    graph: nn.Module
    inputs: dict[str, Tensor]
    sizes: dict[str, dict[int, Any]]
    """`torch.export.Dim` by input and axis."""
    outputs: tuple[str, ...]


class Classifier(Protocol):
    """Compares regions with class names."""

    @property
    def classes(self) -> int:
        """Number K of the classes that are reported, the first columns of the cosines."""
        ...

    def __call__(self, unit_regions: Tensor) -> Tensor:
        """Return cosines [R, K + B] of unit region embeddings [R, D] with K classes and B background ones."""
        ...


class ImageEncoding(Protocol):
    """What a detector computed of one image, and no class name changes."""

    @property
    def proposals(self) -> Instances:
        """Boxes that the detector finds by itself: `proposal_boxes` [R, 4], in pixels of the network input."""
        ...

    @property
    def encoded_regions(self) -> int:
        """Number of the proposals that were encoded until now."""
        ...


@runtime_checkable
class OpenVocabularyDetector(Protocol):
    """A Detectron2 meta-architecture whose classes can change while it runs."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def text_space(self) -> TextSpace:
        """Whose text embeddings fit."""
        ...

    @property
    def score_threshold(self) -> float:
        """Score below which the config reports no detection."""
        ...

    @property
    def unused_with_class_names(self) -> tuple[str, ...]:
        """Beginnings of the keys of weights without effect once class names are given."""
        ...

    def eval(self) -> Any:
        """Set evaluation mode."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights by their keys."""
        ...

    def require_open_vocabulary(self) -> None:
        """Raise a `UserError` unless the detector takes any class names, not only those it was trained for."""
        ...

    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> Sequence[ImageEncoding]:
        """Compute of images what does not depend on class names.

        Args:
            inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT. A batch is padded to its largest image.
            proposals: of all images at once; else of each when it is first asked for them.
        """
        ...

    def detect(self, encoding: Any, classifier: Classifier | None, selection: Selection) -> Instances:
        """Detect objects of a classifier's classes, or those of the config, in one image.

        Returns:
            Instances with `pred_boxes` in pixels of the network input, `scores`, `pred_classes`, best first, and
            `embeddings` [M, D], not normalized.
        """
        ...

    def embed_regions(self, encoding: Any, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, D], not normalized, of boxes in pixels of the network input."""
        ...

    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return [R, K + 1] of region embeddings [R, D]: of a classifier's classes or the config's, and of the rest."""
        ...

    def prepare_for_inference(self, precision: str, first_stage: str, when_emulated: str) -> nn.Module:
        """Rewrite the detector in place so that it computes the same in less time, and return it.

        Arguments and errors are those of `modeling.inference.prepare.prepare_for_inference`.
        """
        ...

    def export_parts(self) -> Iterator[Part]:
        """Yield the graphs that make up the detector; raises `UserError` for what other runtimes cannot compute."""
        ...


def require_detector(model: nn.Module) -> OpenVocabularyDetector:
    """Return a model as the detector that it is; raises `UserError` for any other model."""
    if not isinstance(model, OpenVocabularyDetector):
        expected, fix = "an open-vocabulary detector", "name the config of a detector"
        raise user_error("model", expected, type(model).__name__, fix)
    return model


@runtime_checkable
class EmbedsClassNames(Protocol):
    """A detector with a text encoder of its own, trained with it."""

    def set_classes(self, names: Sequence[str]) -> None:
        """Embed the class names that regions are scored against."""
        ...
