"""Class embeddings in the joint image-text space, from class names through prompts and CLIP's text encoder.

The text encoder and its tokenizer are imported for class names that are not cached: importing open_clip takes a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.architectures import END_OF_TEXT, START_OF_TEXT
from regionclip.clip.embedding_cache import EmbeddingCache
from regionclip.clip.prompts import PromptEnsemble, fill_template
from regionclip.clip.template_encoding import NamesInTemplates, is_simple, template_tokens
from regionclip.isolation import with_own_settings
from regionclip.progress import progress_bar

if TYPE_CHECKING:
    from regionclip.clip.text_encoder import TextEncoder, Tokenizer
    from regionclip.clip.vocabulary import Vocabulary

PROMPTS_AT_ONCE, WORDS_AT_ONCE = 256, 512
"""Prompts per forward pass of the text encoder, and class names between two entries in the cache."""

WORTHWHILE = 8
"""Minimum number of class names that are encoded template by template."""

TOKENS_OF_NAME = 60
"""Tokens of a class name that always fit next to those of a template."""

QUIET_BELOW = 200
"""Minimum number of prompts for a progress bar."""


class NameEmbedder:
    """Embeds class names with one text encoder, and caches the embeddings."""

    def __init__(
        self, encoder: TextEncoder, model: str, device: torch.device | str, cache: EmbeddingCache | None = None
    ) -> None:
        """Create an embedder.

        Args:
            encoder: the text encoder.
            model: its CLIP size.
            device: where to compute.
            cache: stores the embeddings; None disables caching.
        """
        self._prepare(None, encoder.text_projection.shape[1], model, device, cache)
        self.__dict__["encoder"] = encoder.to(self.device).eval()

    @classmethod
    def of_known_weights(
        cls,
        load: Callable[[], TextEncoder],
        weights_hash: str,
        dim: int,
        model: str,
        device: torch.device | str,
        cache: EmbeddingCache,
    ) -> NameEmbedder:
        """Return an embedder that loads its text encoder only for class names that are not cached.

        Args:
            load: returns the text encoder.
            weights_hash: hash of its weights.
            dim: width D of the joint space.
            model: its CLIP size.
            device: where to compute.
            cache: stores the embeddings.
        """
        embedder = cls.__new__(cls)
        embedder._prepare(load, dim, model, device, cache)
        embedder.__dict__["weights_hash"] = weights_hash
        return embedder

    def _prepare(
        self,
        load: Callable[[], TextEncoder] | None,
        dim: int,
        model: str,
        device: torch.device | str,
        cache: EmbeddingCache | None,
    ) -> None:
        self._load = load
        self.dim = dim
        """Width D of the joint space."""
        self.model = model
        self.device = torch.device(device)
        self.cache = cache
        self._known: dict[str, dict[str, Tensor]] = {}

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the embeddings of a vocabulary for its words, where text encoder and templates are the same."""
        self._known.setdefault(f"{vocabulary.text_weights} {vocabulary.templates}", {}).update(
            vocabulary.rows_of_words()
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, the same for all CLIP models."""
        from regionclip.clip.text_encoder import Tokenizer

        return Tokenizer()

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder, on its device."""
        assert self._load is not None
        return self._load().to(self.device).eval()

    @cached_property
    def weights_hash(self) -> str:
        """A short hash of the text encoder's weights: the same for the same values in different files.

        The activation belongs to them: with another one the same weights embed differently.
        """
        digest = hashlib.sha256(b"" if self.encoder.quick_gelu else b"gelu")
        for key, value in sorted(self.encoder.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()[:16]

    def token_ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each class name, from the cache where present: equal ids are the same to CLIP.

        A prompt has 75 tokens, some of which belong to its template.
        """
        found = self.cache.token_ids(words) if self.cache else {}
        missing = [word for word in dict.fromkeys(words) if word not in found]
        ids = {word: tuple(self.tokenizer.encode(fill_template("{}", word)))[:TOKENS_OF_NAME] for word in missing}
        if ids and self.cache:
            self.cache.keep_token_ids(ids)
        return [(found | ids)[word] for word in words]

    def has_marks(self, tokens: Sequence[int]) -> bool:
        """Return whether the token ids of a class name include a start or end of text."""
        return START_OF_TEXT in tokens or END_OF_TEXT in tokens

    @with_own_settings
    def embed(self, words: Sequence[str], ensemble: PromptEnsemble) -> Tensor:
        """Return embeddings float32 [N, D] on the CPU, from the cache where present.

        A class embedding is the mean over its prompts: of the raw embeddings, as upstream, or of unit
        vectors if the ensemble says so.
        """
        scope = f"{self.weights_hash}/{ensemble.fingerprint}" if self.cache else ""
        found = self.cache.get(scope, words, self.dim) if self.cache else {}
        if self._known:
            shipped = self._known.get(f"{self.weights_hash} {ensemble.name} {ensemble.fingerprint}", {})
            found |= {word: shipped[word] for word in words if word in shipped}
        missing = [word for word in dict.fromkeys(words) if word not in found]
        hidden = len(missing) * len(ensemble.templates) < QUIET_BELOW
        with progress_bar(total=len(missing), unit="word", hidden=hidden) as progress:
            for start in range(0, len(missing), WORDS_AT_ONCE):
                part = missing[start : start + WORDS_AT_ONCE]
                rows = self._embed(part, ensemble)
                found.update(zip(part, rows, strict=True))
                if self.cache:
                    self.cache.put(scope, part, rows)
                progress.update(len(part))
        return torch.stack([found[word] for word in words]) if words else torch.empty(0, self.dim)

    def _embed(self, words: Sequence[str], ensemble: PromptEnsemble) -> Tensor:
        embeddings = torch.empty(len(words), len(ensemble.templates), self.dim)
        left = torch.ones(len(words), len(ensemble.templates), dtype=torch.bool)
        simple = [row for row, word in enumerate(words) if is_simple(word)]
        if len(simple) >= WORTHWHILE:
            names = NamesInTemplates(self.encoder, [self.tokenizer.encode(words[row]) for row in simple])
            for column, template in enumerate(ensemble.templates):
                around = template_tokens(template, self.tokenizer)
                if around is not None and names.fit(around):
                    embeddings[simple, column] = names.embed(around).cpu()
                    left[simple, column] = False
        pairs = left.nonzero().tolist()
        if pairs:
            prompts = [fill_template(ensemble.templates[column], words[row]) for row, column in pairs]
            embeddings[left] = self._embed_prompts(prompts)
        if not ensemble.normalized:
            return embeddings.mean(dim=1)
        return F.normalize(F.normalize(embeddings, dim=2).mean(dim=1), dim=1)

    def _embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings [N, D] of whole prompts."""
        from regionclip.clip.text_encoder import tokenize

        tokens = tokenize(prompts, self.tokenizer)
        # Sorted by length and truncated to the longest of a pass, as most of the 77 tokens are padding.
        lengths = tokens.argmax(dim=1) + 1
        order = lengths.argsort(stable=True)
        embeddings = torch.empty(len(prompts), self.dim)
        for rows in order.split(PROMPTS_AT_ONCE):
            ids = tokens[rows, : int(lengths[rows].max())]
            embeddings[rows] = self.encoder(ids.to(self.device)).float().cpu()
        return embeddings
