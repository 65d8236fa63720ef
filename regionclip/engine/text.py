"""The text tower alone, out of any checkpoint that has one."""

from __future__ import annotations

import torch
from torch import nn

from regionclip.clip import CLIPArchitecture
from regionclip.clip.embedding_cache import EmbeddingCache, file_state
from regionclip.clip.text import TextEncoder
from regionclip.clip.word_embedder import WordEmbedder
from regionclip.engine.checkpoint import load_weights
from regionclip.errors import user_error
from regionclip.files import resolve_path
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

    A file that the cache knows is not read before a word is missing there.

    Raises:
        UserError: the file cannot be read, or has no text tower of this size.
    """

    def load() -> WordEmbedder:
        tower = TextTower(architecture)
        load_weights(tower, weights, trust_pickle=trust_pickle)
        return WordEmbedder(tower.lang_encoder, architecture.name, device, cache)

    file = resolve_path(weights).absolute()
    if cache is None or not file.is_file():
        return load()
    key = f"{architecture} in {file_state(file)}"
    known = cache.weights_hash(key)
    if known is None:
        embedder = load()
        cache.keep_weights_hash(key, embedder.weights_hash)
        return embedder

    def load_known() -> TextEncoder:
        embedder = load()
        if embedder.weights_hash != known:
            raise user_error(weights, f"text weights {known}, as when it was first used", "others", "load them again")
        return embedder.encoder

    return WordEmbedder.of_known_weights(
        load_known, known, architecture.embedding_dim, architecture.name, device, cache
    )
