"""CLIP's attention pool: a feature map becomes one embedding in the joint space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPool2d(nn.Module):
    """Attend from the mean of a feature map to all of its cells (fact sheet 2.2).

    Only the output of the mean token leaves the layer, so only its query is computed; this equals
    the published layer, which computes all of them, up to rounding (6e-8).
    """

    def __init__(self, grid: int, width: int, heads: int, output_dim: int) -> None:
        """Make a pool for `grid` x `grid` cells of `width` channels, giving `output_dim` channels."""
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
            float [N, output_dim], not normalised.

        Raises:
            ValueError: the map is not `grid` x `grid`; the positional table is not interpolated.
        """
        if tuple(x.shape[2:]) != (self.grid, self.grid):
            raise ValueError(
                f"attention pool expects {self.grid}x{self.grid} cells, got {x.shape[2]}x{x.shape[3]}: "
                f"set the RoI pooler resolution to {2 * self.grid}"
            )
        cells = x.flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)  # [N, 1 + L, C]
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.q_proj(tokens[:, :1])),
            self._split_heads(self.k_proj(tokens)),
            self._split_heads(self.v_proj(tokens)),
        )  # [N, heads, 1, C / heads]
        return self.c_proj(attended.flatten(1))

    def _split_heads(self, x: Tensor) -> Tensor:
        # [N, T, C] -> [N, heads, T, C / heads]
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
