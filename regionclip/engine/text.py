"""The text tower alone, out of any checkpoint that has one."""

from __future__ import annotations

import torch
from torch import nn

from regionclip.clip import CLIPArchitecture
from regionclip.clip.embedding_cache import EmbeddingCache
from regionclip.clip.text import TextEncoder
from regionclip.clip.word_embedder import WordEmbedder
from regionclip.engine.checkpoint import load_weights
from regionclip.isolation import with_own_settings


class TextTower(nn.Module):
    """A text encoder under the key that checkpoints use."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Make the tower of a CLIP size."""
        super().__init__()
        self.lang_encoder = TextEncoder(architecture)


@with_own_settings
def load_embedder(
    architecture: CLIPArchitecture,
    weights: str,
    device: torch.device | str = "cpu",
    *,
    cache: EmbeddingCache | None = None,
    trust_pickle: bool = False,
) -> WordEmbedder:
    """Return what embeds words with the text encoder of a CLIP or RegionCLIP checkpoint.

    Raises:
        UserError: the file cannot be read, or has no text tower of this size.
    """
    tower = TextTower(architecture)
    load_weights(tower, weights, trust_pickle=trust_pickle)
    return WordEmbedder(tower.lang_encoder, architecture.name, device, cache)
