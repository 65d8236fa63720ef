"""The part of the detector contract that follows from a preprocessor, a selector and configured classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.errors import user_error
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.detector import Classifier, Selection
from regionclip.modeling.inference.early_end import detect_selected
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.postprocess import DetectionSelector
from regionclip.modeling.preprocessing import ImagePreprocessor
from regionclip.modeling.region_encoding import RegionEncoding
from regionclip.modeling.score_scale import ScoreScale


class ConfiguredDetector(nn.Module):
    """Detector whose classes come from embedding files, or from its user, who may name any."""

    preprocessor: ImagePreprocessor
    selector: DetectionSelector
    train_classes: ConfiguredClasses | None
    test_classes: ConfiguredClasses | None
    """Of evaluation; None takes `train_classes`."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.preprocessor.mean.device

    @property
    def score_threshold(self) -> float:
        """SCORE_THRESH_TEST."""
        return self.selector.score_threshold

    @property
    def score_scale(self) -> ScoreScale:
        """That of the reported scores."""
        return self.selector.scale

    @property
    def unused_with_class_names(self) -> tuple[str, ...]:
        """Nothing: class embeddings are no weights."""
        return ()

    def require_open_vocabulary(self) -> None:
        """Return: class names can be set."""

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """None: any."""
        return None

    def require_names(self, names: Sequence[str]) -> None:
        """Return: any class name will do."""

    def configured_classes(self) -> ConfiguredClasses:
        """Return the classes of an evaluation; raises `UserError` if the config names none."""
        classes = self.test_classes or self.train_classes
        if classes is None:
            fix = "set MODEL.CLIP.TEXT_EMB_PATH, or give class names"
            raise user_error("classes of the detector", "class embeddings", "none", fix)
        return classes

    def prepare_for_inference(
        self, precision: str = "float32", first_stage: str = "res5", when_emulated: str = "replace"
    ) -> Self:
        """Optimize the model in place for inference; see `modeling.inference.prepare`."""
        prepare_for_inference(self, precision, first_stage, when_emulated)
        return self


class SoftmaxOverProposals(ConfiguredDetector):
    """Detector that keeps proposals as they are, and classifies them by a softmax over cosines with class names."""

    temperature: float
    """Divides the cosines (CLSS_TEMP)."""

    @torch.no_grad()
    def detect(self, encoding: RegionEncoding, classifier: Classifier | None, selection: Selection) -> Instances:
        """Return (box, class) pairs by score; see `OpenVocabularyDetector.detect`. Boxes are not refined."""
        known = classifier or self.configured_classes()

        def classify(embeddings: Tensor, proposals: Instances) -> tuple[Tensor, Tensor]:
            return proposals.proposal_boxes.tensor, self.probabilities(embeddings, known)

        return detect_selected(encoding.regions, classify, known.classes, self.selector, selection)

    @torch.no_grad()
    def probabilities(self, embeddings: Tensor, classifier: Classifier | None) -> Tensor:
        """Return the softmax [R, K + 1] over all classes; the last column has those that are not reported."""
        known = classifier or self.configured_classes()
        probabilities = (known(F.normalize(embeddings, dim=1)) / self.temperature).softmax(dim=1)
        rest = probabilities[:, known.classes :].sum(dim=1, keepdim=True)
        return torch.cat([probabilities[:, : known.classes], rest], dim=1)
