"""Loading only the text encoder of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.embedding_cache import EmbeddingCache
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import user_error
from regionclip.files import file_version, resolve_path
from regionclip.isolation import with_own_settings

if TYPE_CHECKING:
    from regionclip.clip.text_encoder import TextEncoder


class TextEncoderModule(nn.Module):
    """A text encoder under the key that checkpoints use."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Create the text encoder of a CLIP size."""
        from regionclip.clip.text_encoder import TextEncoder  # imports open_clip

        super().__init__()
        self.lang_encoder = TextEncoder(architecture)


@dataclass(frozen=True)
class TextEncoderFile:
    """Loads the text encoder of a file when called, in any process."""

    architecture: CLIPArchitecture
    weights: str
    trust_pickle: bool
    weights_hash: str = ""
    """Hash of the weights at the file's first use; empty accepts any."""

    def __call__(self) -> TextEncoder:
        """Return the text encoder; raises `UserError` for an unreadable file, or one whose weights have changed."""
        module = TextEncoderModule(self.architecture)
        load_weights(module, self.weights, trust_pickle=self.trust_pickle)
        if self.weights_hash:
            found = NameEmbedder(module.lang_encoder, self.architecture.name, "cpu").weights_hash
            if found != self.weights_hash:
                expected = f"text weights {self.weights_hash}, as when it was first used"
                raise user_error(self.weights, expected, found, "load them again")
        return module.lang_encoder


@with_own_settings
def load_embedder(
    architecture: CLIPArchitecture,
    weights: str,
    device: torch.device | str = "cpu",
    *,
    cache: EmbeddingCache | None = None,
    trust_pickle: bool = False,
) -> NameEmbedder:
    """Return a class name embedder with the text encoder of a CLIP or RegionCLIP checkpoint.

    A file known to the cache is read only when a class name is missing there.

    Raises:
        UserError: the file cannot be read, or has no text encoder of this size.
    """
    load = TextEncoderFile(architecture, weights, trust_pickle)
    file = resolve_path(weights).absolute()
    if cache is None or not file.is_file():
        return NameEmbedder(load(), architecture.name, device, cache)
    key = f"{architecture} in {file_version(file)}"
    known = cache.weights_hash(key)
    if known is None:
        embedder = NameEmbedder(load(), architecture.name, device, cache)
        cache.keep_weights_hash(key, embedder.weights_hash)
        return embedder
    later = TextEncoderFile(architecture, str(file), trust_pickle, known)
    return NameEmbedder.of_known_weights(later, known, architecture.embedding_dim, architecture.name, device, cache)
