"""The transformer of the localizer: DAB-DETR with one scale, with the published state-dict keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regionclip.methods.cora.encodings import CHANNELS, encode_anchors, logit

REFERENCE_MARGIN = 1e-3
"""Of the logit of references that a decoder layer refines."""

LARGE_MAP = 2**22
"""Entries of an attention map of a head, above which memory counts more than time."""


class MLP(nn.Module):
    """Linear layers with ReLU between them (keys `layers.{i}`)."""

    def __init__(self, *widths: int) -> None:
        """Create layers from `widths[0]` to `widths[-1]` channels."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., widths[0]] to [..., widths[-1]]."""
        *first, last = self.layers
        for layer in first:
            x = F.relu(layer(x))
        return last(x)


class Decoded(NamedTuple):
    """Output of the decoder."""

    states: Tensor
    """[L, N, Q, C], after the shared normalization, for each layer."""
    references: Tensor
    """[L, N, Q, 4], the boxes in [0, 1] that each layer starts from."""


class FeedForward(nn.Module):
    """Keys `linear1`, `linear2`, `activation` of a layer, whose class inherits this."""

    linear1: nn.Linear
    linear2: nn.Linear
    activation: nn.PReLU
    dropout: float

    def feed_forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return self.linear2(self._drop(self.activation(self.linear1(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _make_feed_forward(self, width: int, hidden: int, dropout: float) -> None:
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation, self.dropout = nn.PReLU(), dropout


def attend_with_little_memory(attend: Callable[..., Tensor], *inputs: Tensor, dropout: float) -> Tensor:
    """Return `attend(*inputs)`; its attention maps are computed again in the backward pass if they would be kept.

    PyTorch's fused attention has no dropout on a CPU: four maps [heads, Q, L] of every layer would be kept, 6 of the 8
    GiB of an image of 800 x 1333. The result has the same bits.
    """
    query, value = inputs[0], inputs[-1]  # [N, ..., Q, C], [N, ..., L, C]
    entries = len(query) * query.shape[-2] * value.shape[-2]
    if entries > LARGE_MAP and dropout and torch.is_grad_enabled() and query.device.type == "cpu":
        return cast(Tensor, checkpoint(attend, *inputs, use_reentrant=False))
    return attend(*inputs)


class EncoderLayer(FeedForward):
    """Self-attention over the cells of an image."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        """Create a layer of `width` channels."""
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self._make_feed_forward(width, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """Map tokens [N, L, C] with their position encoding [N, L, C]; `padding` bool [N, L] is not attended to."""

        def attend(key: Tensor, value: Tensor) -> Tensor:
            return self.self_attn(key, key, value, key_padding_mask=padding, need_weights=False)[0]

        dropout = self.dropout if self.training else 0.0
        attended = attend_with_little_memory(attend, x + position, x, dropout=dropout)
        x = self.norm1(x + self._drop(attended))
        return self.norm2(x + self._drop(self.feed_forward(x)))


class Encoder(nn.Module):
    """Encoder whose position encoding is scaled by the content of each token."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        """Create `layers` encoder layers."""
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.query_scale = MLP(width, width, width)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """Map tokens [N, L, C]; arguments as for `EncoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, position * self.query_scale(x), padding)
        return x


class ProjectedAttention(nn.Module):
    """Multi-head attention of projected queries, keys and values (key `out_proj`)."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        """Create the output projection of `width` channels."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend from [N, Q, E] to keys [N, L, E] with values [N, L, C], except `padding` bool [N, L]: [N, Q, C].

        E may differ from C. The heads are the outer parts of the channels.
        """
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = None if padding is None else ~padding[:, None, None]  # [N, 1, 1, L]
        dropout = self.dropout if self.training else 0.0
        attend = partial(F.scaled_dot_product_attention, attn_mask=mask, dropout_p=dropout)
        attended = attend_with_little_memory(attend, query, key, value, dropout=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # [N, heads, Q, C / heads] -> [N, Q, C]


class DecoderLayer(FeedForward):
    """Self-attention of the queries, cross-attention to the image with position and content side by side."""

    sa_qcontent_proj: nn.Linear
    sa_qpos_proj: nn.Linear
    sa_kcontent_proj: nn.Linear
    sa_kpos_proj: nn.Linear
    sa_v_proj: nn.Linear
    ca_qcontent_proj: nn.Linear
    ca_qpos_proj: nn.Linear
    ca_kcontent_proj: nn.Linear
    ca_kpos_proj: nn.Linear
    ca_v_proj: nn.Linear
    ca_qpos_sine_proj: nn.Linear

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, first: bool) -> None:
        """Create a layer; only the `first` adds the projected query position to the content."""
        super().__init__()
        self.heads = heads
        for name in ("qcontent", "qpos", "kcontent", "kpos", "v"):
            self.add_module(f"sa_{name}_proj", nn.Linear(width, width))
        self.self_attn = ProjectedAttention(heads, width, dropout)
        self.norm1 = nn.LayerNorm(width)
        for name in ("qcontent", *(("qpos",) if first else ()), "kcontent", "kpos", "v", "qpos_sine"):
            self.add_module(f"ca_{name}_proj", nn.Linear(width, width))
        self.cross_attn = ProjectedAttention(heads, width, dropout)
        self._make_feed_forward(width, hidden, dropout)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.first = first

    def forward(
        self, x: Tensor, position: Tensor, sine: Tensor, memory: Tensor, memory_position: Tensor, padding: Tensor
    ) -> Tensor:
        """Map query contents [N, Q, C].

        Args:
            x: query contents.
            position: query positions [N, Q, C].
            sine: sine encoding of the query centers [N, Q, C], scaled by content and size.
            memory: encoded cells [N, L, C].
            memory_position: their position encoding [N, L, C].
            padding: bool [N, L], cells that are not attended to.
        """
        x = self.norm1(x + self._drop(self._attend_queries(x, position)))
        x = self.norm2(x + self._drop(self._attend_image(x, position, sine, memory, memory_position, padding)))
        return self.norm3(x + self._drop(self.feed_forward(x)))

    def _attend_queries(self, x: Tensor, position: Tensor) -> Tensor:
        query = self.sa_qcontent_proj(x) + self.sa_qpos_proj(position)
        key = self.sa_kcontent_proj(x) + self.sa_kpos_proj(position)
        return self.self_attn(query, key, self.sa_v_proj(x))

    def _attend_image(
        self, x: Tensor, position: Tensor, sine: Tensor, memory: Tensor, memory_position: Tensor, padding: Tensor
    ) -> Tensor:
        query, key, key_position = (
            self.ca_qcontent_proj(x),
            self.ca_kcontent_proj(memory),
            self.ca_kpos_proj(memory_position),
        )
        if self.first:
            query, key = query + self.ca_qpos_proj(position), key + key_position
        query = self._side_by_side(query, self.ca_qpos_sine_proj(sine))
        return self.cross_attn(query, self._side_by_side(key, key_position), self.ca_v_proj(memory), padding)

    def _side_by_side(self, content: Tensor, position: Tensor) -> Tensor:
        # Per head: two times [N, L, heads, C / heads] -> [N, L, 2 C]
        parts = [x.unflatten(2, (self.heads, -1)) for x in (content, position)]
        return torch.cat(parts, dim=3).flatten(2)


class Decoder(nn.Module):
    """Decoder that refines anchor boxes layer by layer."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        """Create `layers` decoder layers with a box head each."""
        super().__init__()
        if width != 2 * CHANNELS:
            raise ValueError(f"width: expected {2 * CHANNELS}, the channels of two encoded coordinates, got {width}")
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout, first=i == 0) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.query_scale = MLP(width, width, width)
        self.ref_point_head = MLP(2 * width, width, width)
        self.ref_anchor_head = MLP(width, width, 2)
        self.bbox_embed = nn.ModuleList(MLP(width, width, width, 4) for _ in range(layers))

    def forward(
        self, content: Tensor, anchors: Tensor, memory: Tensor, memory_position: Tensor, padding: Tensor
    ) -> Decoded:
        """Decode queries.

        Args:
            content: query contents [N, Q, C].
            anchors: logits of the anchor boxes [N, Q, 4].
            memory: encoded cells [N, L, C].
            memory_position: their position encoding [N, L, C].
            padding: bool [N, L], cells that are not attended to.
        """
        x, reference = content, anchors.sigmoid()
        states, references = [], [reference]
        for number, layer in enumerate(self.layers):
            position, sine = self._encode(x, reference, number)
            x = layer(x, position, sine, memory, memory_position, padding)
            states.append(self.norm(x))
            if number + 1 < len(self.layers):
                # The raw state moves the reference. The next layer gets it detached, the box heads attached.
                moved = (self.bbox_embed[number](x) + logit(reference, REFERENCE_MARGIN)).sigmoid()
                references.append(moved)
                reference = moved.detach()
        return Decoded(torch.stack(states), torch.stack(references))

    def _encode(self, x: Tensor, reference: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the positions [N, Q, C] of queries, and the encoding of their centers, scaled by content and size."""
        encoded = encode_anchors(reference)  # [N, Q, 4 * CHANNELS]: y, x, w, h
        center = encoded[..., : 2 * CHANNELS]
        if number:
            center = center * self.query_scale(x)
        # Attention over y is as wide as the height allows, over x as the width (DAB-DETR, section 4.4).
        width, height = (self.ref_anchor_head(x).sigmoid() / reference[..., 2:]).split(1, dim=-1)
        by_y, by_x = center.split(CHANNELS, dim=-1)
        return self.ref_point_head(encoded), torch.cat([by_y * height, by_x * width], dim=-1)


class DABTransformer(nn.Module):
    """Encoder and decoder (keys `encoder.*`, `decoder.*`)."""

    def __init__(
        self, encoder_layers: int, decoder_layers: int, width: int, heads: int, hidden: int, dropout: float
    ) -> None:
        """Create both; weight matrices are initialized as Xavier says, and box heads to move nothing."""
        super().__init__()
        self.encoder = Encoder(encoder_layers, width, heads, hidden, dropout)
        self.decoder = Decoder(decoder_layers, width, heads, hidden, dropout)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        for head in self.decoder.bbox_embed:
            last = cast(nn.Linear, cast(MLP, head).layers[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def predict_boxes(heads: Sequence[nn.Module], decoded: Decoded, margin: float = 1e-5) -> Tensor:
    """Return the boxes [L, N, Q, 4] (cx, cy, w, h in [0, 1]) of all layers, from states and references."""
    boxes = [
        (head(state) + logit(reference, margin)).sigmoid()
        for head, state, reference in zip(heads, decoded.states, decoded.references, strict=True)
    ]
    return torch.stack(boxes)
