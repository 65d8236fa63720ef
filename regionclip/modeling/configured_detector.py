"""The part of the detector contract that follows from a preprocessor, a selector and configured classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from regionclip.errors import user_error
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.postprocess import DetectionSelector
from regionclip.modeling.preprocessing import ImagePreprocessor
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
        """That of the score fusion."""
        return self.selector.fusion.scale

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
