"""What both stages are: models on a frozen CLIP ResNet that compare regions with class embeddings."""

from __future__ import annotations

from typing import Self

from torch import nn

from regionclip.modeling.backbones.clip_resnet import CLIPResNetBackbone
from regionclip.modeling.configured_detector import ConfiguredDetector
from regionclip.modeling.detector import TextSpace


class OnFrozenCLIP(ConfiguredDetector):
    """The part of the detector contract that does not differ between the stages."""

    frozen_parts = ("backbone.",)
    """Key prefixes that need loaded weights before training."""

    backbone: CLIPResNetBackbone
    lang_encoder: nn.Module | None

    @property
    def text_space(self) -> TextSpace:
        """The embedding space of the CLIP image encoder."""
        return TextSpace(self.backbone.architecture.embedding_dim, self.backbone.architecture.name)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; backbone, text encoder and the RPN of proposals always stay in evaluation mode."""
        super().train(mode)
        for name in ("backbone", "lang_encoder", "offline_backbone", "offline_proposal_generator"):
            module = getattr(self, name, None)
            if module is not None:
                module.eval()
        return self
