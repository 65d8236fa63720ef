"""Text encoder of the transformer detectors, and class embeddings from class names.

Imported where it is used, like `text_encoder.py`: importing open_clip takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, text_global_pool
from torch import Tensor, nn

from regionclip.clip.architectures import CONTEXT_LENGTH, TRANSFORMER_EMBEDDING_DIM
from regionclip.clip.prompts import PROMPT_TEMPLATES, clean_name, fill_template
from regionclip.clip.text_encoder import Tokenizer, tokenize

WIDTH, HEADS, LAYERS, VOCABULARY = 512, 8, 12, 49408

TEMPLATES = PROMPT_TEMPLATES[:2]
"""The two of the 81 templates that the published system uses."""


class TokenEncoder(nn.Module):
    """Transformer over tokens (keys `token_embedding`, `positional_embedding`, `resblocks`, `ln_final`)."""

    def __init__(self, layers: int, causal: bool) -> None:
        """Create an encoder; with `causal` a token attends only to itself and earlier tokens."""
        super().__init__()
        norm = partial(LayerNorm, eps=1e-12)
        self.causal = causal
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT_LENGTH, WIDTH) * 0.01)
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(WIDTH, HEADS, act_layer=QuickGELU, norm_layer=norm) for _ in range(layers)
        )
        self.ln_final = norm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode int [N, 77] ids, zero-padded: float [N, 77, WIDTH]."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = self._mask(tokens, x.dtype)
        for block in self.resblocks:
            x = block(x, attn_mask=mask)
        return self.ln_final(x)

    def _mask(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        if self.causal:
            return torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), -math.inf, dtype=dtype, device=tokens.device).triu(1)
        # No token attends to padding; [N * heads, 77, 77]
        padding = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device).masked_fill(tokens == 0, -math.inf)
        return padding[:, None].expand(-1, CONTEXT_LENGTH, -1).repeat_interleave(HEADS, dim=0)


class RegionTextEncoder(nn.Module):
    """Embeds class names as unit vectors (keys `lang_encoder.*`, `lang_proj`, `logit_scale`)."""

    logit_scale: Tensor

    def __init__(self, layers: int = LAYERS, causal: bool = True) -> None:
        """Create an encoder; `causal` is the config key MODEL.TEXT.AUTOGRESSIVE."""
        super().__init__()
        self.lang_encoder = TokenEncoder(layers, causal)
        self.lang_proj = nn.Parameter(torch.randn(WIDTH, TRANSFORMER_EMBEDDING_DIM) * WIDTH**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed int [N, 77] ids as unit vectors [N, 512]."""
        pooled = text_global_pool(self.lang_encoder(tokens), tokens, pool_type="argmax") @ self.lang_proj
        return pooled / (pooled.norm(dim=-1, keepdim=True) + 1e-7)

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str], batch: int = 64) -> Tensor:
        """Return unit vectors [K, 512] of class names: the mean over `TEMPLATES`, normalized again."""
        tokenizer = Tokenizer()
        prompts = [fill_template(template, clean_name(name)) for name in names for template in TEMPLATES]
        tokens = tokenize(prompts, tokenizer).to(self.lang_proj.device)
        embeddings = torch.cat([self(part) for part in tokens.split(batch)])
        means = embeddings.unflatten(0, (len(names), len(TEMPLATES))).mean(dim=1)
        return means / (means.norm(dim=-1, keepdim=True) + 1e-7)
