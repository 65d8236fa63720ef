"""Concept augmenter: a transformer that adds retrieved concepts to a region embedding (RALF, section 3.3).

Its state dict has the 113 published tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, LAYERS, HIDDEN, DROPOUT = 8, 6, 2048, 0.1


@dataclass(frozen=True)
class Augmented:
    """Output of the augmenter: unit vectors [R, D]."""

    fine: Tensor
    """Of the decoder, from the region and its concepts."""
    coarse: Tensor
    """Linear function of the region embedding."""

    @property
    def embeddings(self) -> Tensor:
        """The augmented embeddings."""
        return F.normalize(self.fine + self.coarse, dim=1)


class ConceptAugmenter(nn.Module):
    """Attends from one learned query to a region embedding and the concepts most similar to it."""

    def __init__(self, dim: int = 512, concepts: int = 50) -> None:
        """Create an augmenter for embeddings of width `dim`, with `concepts` retrieved concepts."""
        super().__init__()
        self.type_embedding = nn.Parameter(torch.randn(2, dim))
        self.pos_embedding = nn.Parameter(torch.randn(concepts, dim))
        self.class_embedding = nn.Parameter(torch.randn(1, dim))
        self.region_learn_send = nn.Linear(dim, dim)
        layer = nn.TransformerDecoderLayer(dim, HEADS, HIDDEN, DROPOUT)
        self.transformer = nn.TransformerDecoder(layer, LAYERS)

    @property
    def concepts(self) -> int:
        """Number of retrieved concepts."""
        return len(self.pos_embedding)

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return int(self.pos_embedding.shape[1])

    def retrieve(self, regions: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most similar concepts, best first: softmax of cosines [R, K], and rows [R, K].

        Args:
            regions: unit embeddings [R, D].
            concepts: unit embeddings [N, D].
        """
        cosines, rows = (regions @ concepts.T).topk(self.concepts, dim=1)
        return cosines.softmax(dim=1), rows

    def memory(self, regions: Tensor, concepts: Tensor) -> Tensor:
        """Return what the decoder attends to, [R, 1 + K, D]: the region, then its concepts."""
        weights, rows = self.retrieve(regions, concepts)
        region_type, concept_type = self.type_embedding
        retrieved = weights[..., None] * concepts[rows] + self.pos_embedding + concept_type
        return torch.cat([(regions + region_type)[:, None], retrieved], dim=1)

    def augment(self, regions: Tensor, concepts: Tensor) -> Augmented:
        """Return the augmented embeddings of regions and their parts; arguments as for `retrieve`."""
        memory = self.memory(regions, concepts)
        query = self.class_embedding.expand(len(regions), -1)
        if torch.is_grad_enabled():
            decoded = self.transformer(query[None], memory.transpose(0, 1))[0]  # sequence first
        else:
            decoded = decode_one_query(self.transformer, query, memory)
        coarse = self.region_learn_send(regions)
        return Augmented(F.normalize(decoded, dim=1), F.normalize(coarse, dim=1))

    def forward(self, regions: Tensor, concepts: Tensor) -> Tensor:
        """Return the augmented embeddings, unit vectors [R, D]; arguments as for `retrieve`."""
        return self.augment(regions, concepts).embeddings


def decode_one_query(decoder: nn.TransformerDecoder, query: Tensor, memory: Tensor) -> Tensor:
    """Return the output [R, D] of a decoder in evaluation mode, for one query of each region.

    The same function as the decoder's own, with far fewer multiplications: attention of one query to itself is a
    linear map, and keys and values of the memory need not be computed, as q (W m) is (W^T q) m.

    Args:
        decoder: of post-normalized layers with ReLU.
        query: float [R, D].
        memory: float [R, M, D].
    """
    for layer in decoder.layers:
        query = layer.norm1(query + _attend_to_itself(layer.self_attn, query))
        query = layer.norm2(query + _attend(layer.multihead_attn, query, memory))
        query = layer.norm3(query + layer.linear2(layer.linear1(query).relu()))
    return query


def _attend_to_itself(attention: nn.MultiheadAttention, query: Tensor) -> Tensor:
    dim = query.shape[1]
    return attention.out_proj(F.linear(query, attention.in_proj_weight[-dim:], attention.in_proj_bias[-dim:]))


def _attend(attention: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> Tensor:
    heads = attention.num_heads
    to_query, to_key, to_value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)  # the key's bias adds the same to all scores
    projected = F.linear(query, to_query, query_bias).unflatten(1, (heads, -1))  # [R, H, D / H]
    onto_memory = torch.einsum("rhe,hed->rhd", projected, to_key.unflatten(0, (heads, -1)))
    scores = onto_memory @ memory.transpose(1, 2) * projected.shape[2] ** -0.5  # [R, H, M]
    attended = scores.softmax(dim=2) @ memory  # [R, H, D]
    values = torch.einsum("rhd,hed->rhe", attended, to_value.unflatten(0, (heads, -1))).flatten(1)
    return attention.out_proj(values + value_bias)
