"""Text embeddings of many class names in one prompt template, several times faster than prompt by prompt.

Attention in CLIP's text encoder is causal: the tokens before the name have the same states in every prompt of a
template, and are encoded once. Of the last layer only the end-of-text token is needed. The tokens of a prompt are those
of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.architectures import CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT

if TYPE_CHECKING:
    from regionclip.clip.text_encoder import TextEncoder, Tokenizer

BUCKETS, WORTH_SPLITTING = 3, 256
"""Parts of a batch of names by length, so that short ones are padded less, and names from which that pays."""

_SIMPLE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 -]*[A-Za-z0-9])?")
_SIMPLE_TEMPLATE = re.compile(r"(?P<prefix>|[\x20-\x7e]* )\{\}(?P<suffix>|[ .!][\x20-\x7e]*)")


@dataclass(frozen=True)
class TemplateTokens:
    """Token ids around the name: with the start of text, and with the end of text."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def is_simple(name: str) -> bool:
    """Return whether the tokens of a class name are the same in every simple template: ASCII words and digits."""
    return _SIMPLE_NAME.fullmatch(name) is not None


def template_tokens(template: str, tokenizer: Tokenizer) -> TemplateTokens | None:
    """Return the tokens around the name; None for a template in which a name could change them."""
    match = _SIMPLE_TEMPLATE.fullmatch(template)
    if match is None or "{}" in match["suffix"] or "{}" in match["prefix"]:
        return None
    prefix, suffix = (tokenizer.encode(match[part]) for part in ("prefix", "suffix"))
    return TemplateTokens((START_OF_TEXT, *prefix), (*suffix, END_OF_TEXT))


class NamesInTemplates:
    """N class names, whose prompts are embedded template by template."""

    def __init__(self, encoder: TextEncoder, names: Sequence[Sequence[int]]) -> None:
        """Sort names, given as token ids, into parts of like length; `encoder` is the text encoder."""
        self.encoder, self.longest = encoder, max(map(len, names))
        self.device = encoder.text_projection.device
        lengths = torch.tensor([len(name) for name in names])
        order = lengths.argsort(stable=True)
        self.parts = []
        for rows in order.tensor_split(BUCKETS if len(names) >= WORTH_SPLITTING else 1):
            ids = nn.utils.rnn.pad_sequence([torch.tensor(names[row]) for row in rows.tolist()], batch_first=True)
            self.parts.append(tuple(part.to(self.device) for part in (rows, ids, lengths[rows])))

    def fit(self, template: TemplateTokens) -> bool:
        """Return whether all prompts of a template are short enough for the encoder."""
        return len(template.prefix) + self.longest + len(template.suffix) <= CONTEXT_LENGTH

    @torch.no_grad()
    def embed(self, template: TemplateTokens) -> Tensor:
        """Return the embeddings [N, D] of the prompts, as the encoder gives them to rounding; not normalized."""
        suffix = torch.tensor(template.suffix, device=self.device)
        count = sum(len(rows) for rows, _, _ in self.parts)
        embeddings = torch.empty(count, self.encoder.text_projection.shape[1], device=self.device)
        for rows, ids, lengths in self.parts:
            prompts = F.pad(ids, (0, len(suffix)))  # [N, L]
            places = lengths[:, None] + torch.arange(len(suffix), device=self.device)
            prompts.scatter_(1, places, suffix.expand(len(rows), -1))
            end = lengths + len(suffix) - 1
            embeddings[rows] = _encode(self.encoder, template.prefix, prompts, end).float()
        return embeddings


def _encode(encoder: TextEncoder, prefix_ids: Sequence[int], ids: Tensor, end: Tensor) -> Tensor:
    """Return the embeddings [N, D] of a prefix of P tokens with each of N continuations.

    Args:
        encoder: the text encoder.
        prefix_ids: the P tokens.
        ids: int64 [N, L], padded.
        end: int64 [N], place of the end of text in each row.
    """
    device, before, length = ids.device, len(prefix_ids), ids.shape[1]
    position = encoder.positional_embedding
    prefix = encoder.token_embedding(torch.tensor([prefix_ids], device=device)) + position[:before]
    x = encoder.token_embedding(ids) + position[before : before + length]
    places = torch.arange(before + length, device=device)
    causal = places[None] <= places[:, None]  # [P + L, P + L]
    *blocks, last = encoder.transformer.resblocks
    for block in blocks:
        query, key, value = _projected(block, x)
        own = _projected(block, prefix)
        x = _with_rest(block, x, query, *_after(own, key, value), causal[before:])
        prefix = _with_rest(block, prefix, *own, causal[:before, :before])
    query, key, value = _projected(last, x)
    rows = torch.arange(len(x), device=device)
    visible = (places[None] <= (before + end)[:, None])[:, None, None]  # [N, 1, 1, P + L]
    query, x = query[rows, :, end][:, :, None], x[rows, end][:, None]  # [N, heads, 1, C / heads], [N, 1, C]
    x = _with_rest(last, x, query, *_after(_projected(last, prefix), key, value), visible)
    return encoder.ln_final(x[:, 0]) @ encoder.text_projection


def _projected(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [N, heads, L, C / heads] of tokens [N, L, C]."""
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _after(prefix: tuple[Tensor, Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values [N, heads, P + L, C / heads] with those of the prefix first."""
    _, first_key, first_value = (part.expand(len(key), -1, -1, -1) for part in prefix)
    return torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)


def _with_rest(block: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return tokens [N, Q, C] after the attention and the feed-forward network of a block."""
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x + block.attn.out_proj(attended.transpose(1, 2).flatten(2))  # [N, heads, Q, C / heads] -> [N, Q, C]
    return x + block.mlp(block.ln_2(x))
