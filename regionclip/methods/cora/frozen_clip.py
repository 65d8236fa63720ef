"""What both stages are: models on a frozen CLIP ResNet that compare regions with class embeddings."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from regionclip.errors import user_error
from regionclip.methods.cora.classes import ConfiguredClasses
from regionclip.modeling.backbones.clip_resnet import CLIPResNetBackbone
from regionclip.modeling.detector import TextSpace
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.postprocess import DetectionSelector
from regionclip.modeling.preprocessing import ImagePreprocessor
from regionclip.modeling.score_scale import ScoreScale


class OnFrozenCLIP(nn.Module):
    """The part of the detector contract that does not differ between the stages."""

    frozen_parts = ("backbone.",)
    """Key prefixes that need loaded weights before training."""

    backbone: CLIPResNetBackbone
    preprocessor: ImagePreprocessor
    selector: DetectionSelector
    lang_encoder: nn.Module | None
    train_classes: ConfiguredClasses | None
    test_classes: ConfiguredClasses | None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.preprocessor.mean.device

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the CLIP image encoder."""
        return TextSpace(self.backbone.architecture.embedding_dim, self.backbone.architecture.name)

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
        """Return: regions are compared with any class names."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode; backbone and text encoder always stay in evaluation mode."""
        super().train(mode)
        for module in (self.backbone, self.lang_encoder):
            if module is not None:
                module.eval()
        return self

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
