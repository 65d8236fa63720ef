"""The text tower alone, out of any checkpoint that has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.embedder import WordEmbedder
from regionclip.clip.embedding_cache import EmbeddingCache, file_state
from regionclip.clip.text_encoder import TextEncoder
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import user_error
from regionclip.files import resolve_path
from regionclip.isolation import with_own_settings


class TextTower(nn.Module):
    """A text encoder under the key that checkpoints use."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Make the tower of a CLIP size."""
        super().__init__()
        self.lang_encoder = TextEncoder(architecture)


@dataclass(frozen=True)
class TextEncoderFile:
    """Reads the text encoder of a file when it is called, in whatever process that is."""

    architecture: CLIPArchitecture
    weights: str
    trust_pickle: bool
    weights_hash: str = ""
    """Of the weights that the file had when it was first used; empty takes any."""

    def __call__(self) -> TextEncoder:
        """Return the text encoder; raises `UserError` for a file that cannot be read, or has other weights now."""
        tower = TextTower(self.architecture)
        load_weights(tower, self.weights, trust_pickle=self.trust_pickle)
        if self.weights_hash:
            found = WordEmbedder(tower.lang_encoder, self.architecture.name, "cpu").weights_hash
            if found != self.weights_hash:
                expected = f"text weights {self.weights_hash}, as when it was first used"
                raise user_error(self.weights, expected, found, "load them again")
        return tower.lang_encoder


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

    A file that the cache knows is not read before a word is missing there.

    Raises:
        UserError: the file cannot be read, or has no text tower of this size.
    """
    load = TextEncoderFile(architecture, weights, trust_pickle)
    file = resolve_path(weights).absolute()
    if cache is None or not file.is_file():
        return WordEmbedder(load(), architecture.name, device, cache)
    key = f"{architecture} in {file_state(file)}"
    known = cache.weights_hash(key)
    if known is None:
        embedder = WordEmbedder(load(), architecture.name, device, cache)
        cache.keep_weights_hash(key, embedder.weights_hash)
        return embedder
    later = TextEncoderFile(architecture, str(file), trust_pickle, known)
    return WordEmbedder.of_known_weights(later, known, architecture.embedding_dim, architecture.name, device, cache)
