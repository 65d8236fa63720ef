"""CLIP's text encoder and tokenizer, both from open_clip.

Imported where it is used: importing open_clip takes a second, and neither image encoders nor cached class
embeddings need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, text_global_pool
from torch import Tensor, nn

from regionclip.clip.architectures import CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT, CLIPArchitecture

_SPECIAL_TOKENS = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
"""OpenAI's spelling of the special tokens, mapped to open_clip's."""


class TextEncoder(TextTransformer):
    """Text encoder with the published keys of `lang_encoder.*`."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Create the text encoder of `architecture`."""
        super().__init__(
            context_length=architecture.context_length,
            vocab_size=architecture.vocabulary_size,
            width=architecture.text_width,
            heads=architecture.text_heads,
            layers=architecture.text_layers,
            output_dim=architecture.embedding_dim,
            act_layer=QuickGELU if architecture.quick_gelu else nn.GELU,
            norm_layer=LayerNorm,
            pool_type="none",
        )
        self.quick_gelu = architecture.quick_gelu

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Embed every token of int [N, L] ids, L at most 77: float [N, L, D], not normalized.

        Upstream's `only_eot=False`.
        """
        return self._encode(tokens) @ self.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed int [N, L] ids as the embedding of their end-of-text token: float [N, D].

        The end-of-text token is the largest id of a row, as in CLIP; the result is not normalized.
        Attention is causal, so truncating ids after the last end of text does not change the result.
        Upstream's `only_eot=True`.
        """
        return text_global_pool(self._encode(tokens), tokens, pool_type="argmax") @ self.text_projection

    def _encode(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        return self.ln_final(self.transformer(x, attn_mask=self.attn_mask[:length, :length]))


TEXTS_KEPT = 100_000
"""Texts whose token ids a tokenizer keeps: about 30 MB of captions."""


class Tokenizer(SimpleTokenizer):
    """CLIP's byte-level BPE, which also accepts OpenAI's spelling of the special tokens."""

    def __init__(self) -> None:
        """Create the tokenizer; it keeps the ids of the latest texts, since captions come again in each epoch."""
        super().__init__()
        self._encode_once = lru_cache(TEXTS_KEPT)(self._encode)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[()]]:
        """Travel to another process without the texts."""
        return Tokenizer, ()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end of text."""
        return list(self._encode_once(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        for published, spelled in _SPECIAL_TOKENS.items():
            text = text.replace(published, spelled)
        return tuple(super().encode(text))


def tokenize(texts: Sequence[str], tokenizer: SimpleTokenizer, *, keep_end_of_text: bool = True) -> Tensor:
    """Return int64 [N, 77] token ids, zero-padded: start of text, text, end of text.

    Args:
        texts: N texts.
        tokenizer: usually a `Tokenizer`.
        keep_end_of_text: texts of more than 75 tokens are truncated before their end-of-text
            token; False truncates as upstream does, which drops that token.
    """
    if keep_end_of_text:
        return tokenizer(list(texts), context_length=CONTEXT_LENGTH)
    ids = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        tokens = [START_OF_TEXT, *tokenizer.encode(text), END_OF_TEXT][:CONTEXT_LENGTH]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids
