"""Interface of open-vocabulary detectors for the predictor, batch runs, evaluation, features and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from regionclip.errors import user_error
from regionclip.modeling.proposals.sources import ImageInput
from regionclip.modeling.score_scale import ScoreScale


@dataclass(frozen=True)
class Selection:
    """Which detections of an image to return; None takes the value of the config."""

    threshold: float | None = None
    """Minimum score."""
    topk: int | None = None
    """Maximum number of detections."""
    per_class: bool | None = None
    """Suppress duplicates within each class, as published, or across classes: each object keeps its best class."""


@dataclass(frozen=True)
class TextSpace:
    """The CLIP model whose text embeddings regions are compared with."""

    dim: int
    """Width D of the joint embedding space."""
    clip: str
    """Name of the CLIP size."""


@dataclass(frozen=True)
class Part:
    """A graph for export with example inputs and dynamic axes."""

    name: str
    graph: nn.Module
    inputs: dict[str, Tensor]
    sizes: dict[str, dict[int, Any]]
    """`torch.export.Dim` by input and axis."""
    outputs: tuple[str, ...]


class Classifier(Protocol):
    """Compares region embeddings with class embeddings."""

    @property
    def classes(self) -> int:
        """Number K of reported classes, the first columns of the cosines."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Names of the K classes."""
        ...

    @property
    def embeddings(self) -> Tensor:
        """Unit text embeddings [K, D], one for each class: the mean of its synonyms."""
        ...

    def __call__(self, unit_regions: Tensor) -> Tensor:
        """Return cosines [R, K + B] of unit region embeddings [R, D] with K classes and B background classes."""
        ...


class ImageEncoding(Protocol):
    """The part of a detector's computation on one image that does not depend on class names."""

    @property
    def proposals(self) -> Instances:
        """The detector's own proposals: `proposal_boxes` [R, 4], in pixels of the network input."""
        ...

    @property
    def encoded_regions(self) -> int:
        """Number of proposals encoded so far."""
        ...


@runtime_checkable
class OpenVocabularyDetector(Protocol):
    """A Detectron2 meta-architecture whose classes can change at run time."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def text_space(self) -> TextSpace:
        """The embedding space that class embeddings must come from."""
        ...

    @property
    def score_threshold(self) -> float:
        """Score below which the config reports no detection."""
        ...

    @property
    def score_scale(self) -> ScoreScale:
        """How users see the scores: in [0, 1]."""
        ...

    @property
    def unused_with_class_names(self) -> tuple[str, ...]:
        """Key prefixes of weights that have no effect once class names are given."""
        ...

    def eval(self) -> Any:
        """Set evaluation mode."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights by their keys."""
        ...

    def require_open_vocabulary(self) -> None:
        """Raise a `UserError` unless the detector accepts any class names, not only those of its training."""
        ...

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The only class names that it detects; None if any."""
        ...

    def require_names(self, names: Sequence[str]) -> None:
        """Raise a `UserError` that says how to teach class names which the detector does not know."""
        ...

    def encode_images(self, inputs: Sequence[ImageInput], *, proposals: bool = True) -> Sequence[ImageEncoding]:
        """Compute the part of detection that does not depend on class names.

        Args:
            inputs: for each image `image`, uint8 [3, H, W] in INPUT.FORMAT. A batch is padded to its largest image.
            proposals: compute the proposals of all images now; else those of an image on first access.
        """
        ...

    def detect(self, encoding: Any, classifier: Classifier | None, selection: Selection) -> Instances:
        """Detect objects of the classifier's classes, or of the config's classes, in one image.

        Returns:
            Instances with `pred_boxes` in pixels of the network input, `scores`, `pred_classes`, best first, and
            `embeddings` [M, D], not normalized, as `embed_regions` returns them.
        """
        ...

    def embed_regions(self, encoding: Any, boxes: Boxes) -> Tensor:
        """Return the embeddings [R, E], not normalized, of boxes in pixels of the network input.

        The first D columns are in the text space; a detector that classifies by further features has them after these.
        """
        ...

    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return [R, K + 1] of region embeddings [R, E]: classes of the classifier or config, then the rest."""
        ...

    def prepare_for_inference(self, precision: str, first_stage: str, when_emulated: str) -> nn.Module:
        """Optimize the detector in place for inference with the same results, and return it.

        Arguments and errors are those of `modeling.inference.prepare.prepare_for_inference`.
        """
        ...

    def export_parts(self) -> Iterator[Part]:
        """Yield the graphs of the detector; raises `UserError` for what other runtimes cannot compute."""
        ...


def require_detector(model: nn.Module) -> OpenVocabularyDetector:
    """Return the model as an `OpenVocabularyDetector`; raises `UserError` for any other model."""
    if not isinstance(model, OpenVocabularyDetector):
        expected, fix = "an open-vocabulary detector", "name the config of a detector"
        raise user_error("model", expected, type(model).__name__, fix)
    return model


@runtime_checkable
class EmbedsClassNames(Protocol):
    """A detector with its own text encoder, trained jointly."""

    def set_classes(self, names: Sequence[str]) -> None:
        """Embed the class names that regions are scored against."""
        ...
