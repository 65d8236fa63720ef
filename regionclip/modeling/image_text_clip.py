"""CLIP training: contrastive loss of whole images and captions, for encoders small enough to train from scratch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.resnet import Bottleneck, ModifiedResNet, NormFactory
from regionclip.clip.text_encoder import TextEncoder
from regionclip.config.resolve import clip_architecture
from regionclip.modeling.gathering import gather_rows
from regionclip.modeling.losses.pretraining import image_text_loss, image_text_loss_by_subject
from regionclip.modeling.preprocessing import ImagePreprocessor, build_preprocessor
from regionclip.modeling.proposals.sources import ImageInput

LENGTHS = 4
"""Number of chunks of a caption batch, by length: most captions are short, some are long."""

LARGEST_SCALE = 100.0
"""Upper bound of the learned logit scale, as in CLIP."""


class ImageTextCLIP(TextEncoder):
    """CLIP's image and text encoder with the contrastive loss; keys as in open_clip (`visual.*`, bare text keys)."""

    @configurable
    def __init__(
        self, *, architecture: CLIPArchitecture, norm: NormFactory, preprocessor: ImagePreprocessor, gather: bool
    ) -> None:
        """Create both encoders with random weights.

        Args:
            architecture: the CLIP size.
            norm: factory of the normalization layers of the image encoder.
            preprocessor: normalizes images, all of `architecture.image_resolution`.
            gather: share embeddings among processes (GATHER_GPUS).
        """
        super().__init__(architecture)
        self.visual = ModifiedResNet(architecture, norm)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        _initialize(self.visual)
        self.preprocessor = preprocessor
        self.gather = gather

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "architecture": clip_architecture(cfg),
            "norm": lambda channels: get_norm(cfg.MODEL.RESNETS.NORM, channels),
            "preprocessor": build_preprocessor(cfg),
            "gather": cfg.MODEL.CLIP.GATHER_GPUS,
        }

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.preprocessor.mean.device

    def forward(self, batched_inputs: Sequence[ImageInput]) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the loss of a batch.

        Args:
            batched_inputs: for each image `image`, uint8 [3, S, S] in INPUT.FORMAT, and `tokens`, int64
                [77], of its caption; with NEGATIVE_CAPTIONS also what `NegativeCaptions` adds.

        Raises:
            RuntimeError: in evaluation mode; the weights are evaluated as part of a detector.
        """
        if not self.training:
            raise RuntimeError("ImageTextCLIP only trains: evaluate its weights with a CLIP_fast_rcnn config")
        pixels = self.preprocessor([image["image"] for image in batched_inputs]).tensor
        images = self.visual.embed_images(pixels)
        tokens = torch.stack([image["tokens"] for image in batched_inputs])
        temperature = 1 / self.logit_scale.exp().clamp(max=LARGEST_SCALE)
        if "negative_tokens" in batched_inputs[0]:
            return {"loss_image_text": self._loss_by_subject(images, tokens, batched_inputs, temperature)}
        texts = self._embed_texts(tokens)
        if self.gather:
            images, texts = gather_rows(images), gather_rows(texts)
        with torch.autocast(self.device.type, enabled=False):
            return {"loss_image_text": image_text_loss(images.float(), texts.float(), temperature)}

    def _loss_by_subject(
        self, images: Tensor, tokens: Tensor, batched_inputs: Sequence[ImageInput], temperature: Tensor
    ) -> Tensor:
        """Return the loss with negative captions for image embeddings [N, D] and tokens [N, 77] of their captions."""
        batch = cast(Sequence[dict[str, Tensor]], batched_inputs)
        negative_tokens = torch.cat([image["negative_tokens"] for image in batch])  # [M, 77]
        embedded = self._embed_texts(torch.cat([tokens, negative_tokens]))
        texts, negatives = embedded[: len(tokens)], embedded[len(tokens) :]
        subjects = torch.stack([image["subject"] for image in batch]).to(self.device)
        others = torch.cat([image["negative_subjects"] for image in batch]).to(self.device)
        if self.gather:
            images, texts, negatives = gather_rows(images), gather_rows(texts), gather_rows(negatives)
            subjects, others = gather_rows(subjects), gather_rows(others)
        with torch.autocast(self.device.type, enabled=False):
            all_texts, all_subjects = torch.cat([texts, negatives]).float(), torch.cat([subjects, others])
            return image_text_loss_by_subject(images.float(), all_texts, subjects, all_subjects, temperature)

    def _embed_texts(self, tokens: Tensor) -> Tensor:
        """Embed captions [N, 77] in chunks of similar length, each truncated to its longest caption."""
        lengths = tokens.argmax(dim=1) + 1
        order = lengths.argsort()
        parts = [tokens[rows, : int(lengths[rows].max())] for rows in order.tensor_split(LENGTHS) if len(rows)]
        with self._attention():
            embedded = torch.cat([super(ImageTextCLIP, self).forward(part.to(self.device)) for part in parts])
        return embedded[order.argsort().to(self.device)]

    def _attention(self) -> AbstractContextManager[None]:
        """Return a context with the plain attention on a CPU: flash attention's backward takes three times as long."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()


def _initialize(image_encoder: ModifiedResNet) -> None:
    """Initialize as CLIP: residual blocks as identity, attention pool with a standard deviation of width^-0.5."""
    for block in image_encoder.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(cast(Tensor, block.bn3.weight))
    pool = cast(AttentionPool2d, image_encoder.attnpool)
    for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        nn.init.normal_(projection.weight, std=pool.c_proj.in_features**-0.5)
        nn.init.zeros_(projection.bias)
