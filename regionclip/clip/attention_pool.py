"""CLIP's attention pool: pools a feature map into one embedding in the joint space."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool2d(nn.Module):
    """Attention from the mean of a feature map to all of its cells.

    Only the output of the mean token is used, so only its query is computed, and the key and value
    projections are applied to it instead. This equals the published layer, which projects every token
    three times, up to rounding, with a thirtieth of the multiplications.
    """

    def __init__(self, grid: int, width: int, heads: int, output_dim: int) -> None:
        """Create a pool from `grid` x `grid` cells of `width` channels to `output_dim` channels."""
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)
        self.heads = heads
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Pool a feature map.

        Args:
            x: float [N, C, grid, grid].

        Returns:
            float [N, output_dim], not normalized.

        Raises:
            ValueError: the map is not `grid` x `grid`; the positional embedding is not interpolated.
        """
        check_grid(x, self.grid)
        cells = x.flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)  # [N, 1 + L, C]
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query = self.q_proj(tokens[:, 0]).unflatten(1, (self.heads, -1))  # [N, heads, C / heads]
        # The query is multiplied with k_proj before the tokens are, [N, heads, C]; likewise v_proj is
        # applied once to the attended tokens, instead of projecting every token twice.
        key_rows = torch.einsum("nhd,hdc->nhc", query, self._by_head(self.k_proj.weight))
        key_offset = (query * self._by_head(self.k_proj.bias)).sum(dim=2, keepdim=True)
        scores = key_rows @ tokens.transpose(1, 2) + key_offset  # [N, heads, 1 + L]
        weights = (scores * query.shape[2] ** -0.5).softmax(dim=2)
        attended = torch.einsum("nhc,hdc->nhd", weights @ tokens, self._by_head(self.v_proj.weight))
        return self.c_proj((attended + self._by_head(self.v_proj.bias)).flatten(1))

    def _by_head(self, parameter: Tensor) -> Tensor:
        # [C, ...] -> [heads, C / heads, ...]
        return parameter.unflatten(0, (self.heads, -1))


def check_grid(x: Tensor, grid: int) -> None:
    """Raise `ValueError` unless a feature map [N, C, h, w] has `grid` x `grid` cells."""
    if tuple(x.shape[2:]) != (grid, grid):
        raise ValueError(
            f"attention pool expects {grid}x{grid} cells, got {x.shape[2]}x{x.shape[3]}: "
            f"set the RoI pooler resolution to {2 * grid}"
        )
