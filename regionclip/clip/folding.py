"""Constant folding for inference: normalization into convolutions, positions into the attention pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from regionclip.clip.attention_pool import AttentionPool2d, check_grid
from regionclip.clip.resnet import Bottleneck, ModifiedResNet
from regionclip.ops.fused_convolution import add_convolved, convolution_relu


def fold_image_encoder(image_encoder: ModifiedResNet) -> None:
    """Fold normalization layers into convolutions and positions into the attention pool of an image encoder, in place.

    In evaluation mode the results are the same up to rounding. The state-dict keys are no longer the
    published ones, and the encoder can no longer be trained: fold only after loading the weights, and
    only for inference.
    """
    for number in (1, 2, 3):
        _fold_pair(image_encoder, f"conv{number}", f"bn{number}")
    for stage in image_encoder.stages.values():
        _fold_stage(stage)
    if isinstance(image_encoder.attnpool, AttentionPool2d):
        image_encoder.attnpool = FoldedAttentionPool(image_encoder.attnpool)


class FoldedBottleneck(nn.Module):
    """Residual block of three convolutions without normalization, which writes no map twice."""

    def __init__(
        self,
        convolutions: Sequence[nn.Module],
        shortcut: nn.Module | None,
        pool: nn.Module | None = None,
        *,
        keeps_input: bool = True,
    ) -> None:
        """Create a block.

        Args:
            convolutions: 1x1, 3x3 and 1x1. The first may have another dtype than the others.
            shortcut: convolution on the shortcut, with the dtype of the first; None for identity.
            pool: applied before the last convolution and on the shortcut.
            keeps_input: the input is used elsewhere, so it must not be overwritten.
        """
        super().__init__()
        self.conv1, self.conv2, self.conv3 = cast(list[nn.Conv2d], convolutions)
        self.shortcut = cast("nn.Conv2d | None", shortcut)
        self.pool = nn.Identity() if pool is None else pool
        self.keeps_input = keeps_input

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, K, H', W'] in the last convolution's dtype; overwrites `x` unless `keeps_input`."""
        x, dtype = x.to(self.conv1.weight.dtype), self.conv3.weight.dtype
        inner = self.pool(self.convolution_relu3x3(convolution_relu(self.conv1, x).to(dtype)))
        if self.shortcut is not None:
            x = self.shortcut(self.pool(x)).to(dtype)
        elif self.keeps_input:
            x = x.clone()
        return add_convolved(x, inner, self.conv3.weight, self.conv3.bias)

    def convolution_relu3x3(self, x: Tensor) -> Tensor:
        """Return the 3x3 convolution with ReLU; the Winograd replacement applies ReLU itself."""
        return convolution_relu(self.conv2, x) if isinstance(self.conv2, nn.Conv2d) else self.conv2(x)


def _fold_stage(stage: nn.Module) -> None:
    """Replace the blocks of a residual stage by folded ones."""
    for number, (name, block) in enumerate(list(stage.named_children())):
        assert isinstance(block, Bottleneck)
        for convolution in (1, 2, 3):
            _fold_pair(block, f"conv{convolution}", f"bn{convolution}")
        shortcut = None
        if block.downsample is not None:
            _fold_pair(block.downsample, "0", "1")
            shortcut = block.downsample[0]
        convolutions = (block.conv1, block.conv2, block.conv3)
        setattr(stage, name, FoldedBottleneck(convolutions, shortcut, block.pool, keeps_input=number == 0))


class FoldedAttentionPool(nn.Module):
    """Attention pool that handles cells and positions separately, without building tokens.

    The scores of the mean token are the mean of the cells' scores; positions are multiplied with the key and value
    projections in advance. The key bias adds the same value to all scores, so the softmax cancels it.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        """Fold a pool; its projections are shared."""
        super().__init__()
        self.heads, self.grid = pool.heads, pool.grid
        self.q_proj, self.c_proj = pool.q_proj, pool.c_proj
        self.keys, self.values, self.mean_position, self.position_keys, self.position_values = (
            nn.Parameter(values, requires_grad=False) for values in _folded_pool(pool)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pool a feature map [N, C, grid, grid] to [N, output_dim], as `AttentionPool2d` does."""
        check_grid(x, self.grid)
        cells = x.flatten(2).transpose(1, 2)  # [N, L, C]
        query = self.q_proj(cells.mean(dim=1) + self.mean_position).unflatten(1, (self.heads, -1))
        key_rows = torch.einsum("nhd,hdc->nhc", query, self.keys)
        of_cells = key_rows @ cells.transpose(1, 2)  # [N, heads, L]
        scores = torch.cat([of_cells.mean(dim=2, keepdim=True), of_cells], dim=2)
        scores = scores + torch.einsum("nhd,hdl->nhl", query, self.position_keys)  # [N, heads, 1 + L]
        weights = (scores * query.shape[2] ** -0.5).softmax(dim=2)
        shares = weights[:, :, 1:] + weights[:, :, :1] / cells.shape[1]  # the mean token's weight is spread over cells
        attended = torch.einsum("nhc,hdc->nhd", shares @ cells, self.values)
        attended = attended + torch.einsum("nhl,hld->nhd", weights, self.position_values)
        return self.c_proj(attended.flatten(1))


@torch.no_grad()
def _folded_pool(pool: AttentionPool2d) -> tuple[Tensor, ...]:
    by_head = (pool.heads, -1)
    keys, values = (layer.weight.unflatten(0, by_head) for layer in (pool.k_proj, pool.v_proj))  # [heads, d, C]
    positions = pool.positional_embedding.double()  # [1 + L, C]
    position_keys = torch.einsum("hdc,lc->hdl", keys.double(), positions)
    # Attention weights sum to one, so the bias can be added to every position.
    position_values = torch.einsum("hdc,lc->hld", values.double(), positions)
    position_values += pool.v_proj.bias.double().unflatten(0, by_head)[:, None]
    dtype = keys.dtype
    return keys, values, positions[0].to(dtype), position_keys.to(dtype), position_values.to(dtype)


def folded(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a convolution with the following normalization folded in.

    Args:
        weight: float [C_out, C_in, k, k].
        bias: float [C_out]; None is zero.
        norm: BatchNorm, frozen or in evaluation mode.

    Returns:
        None for a layer that normalizes by the statistics of its input.
    """
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        return None
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    shift = norm.bias.double() + ((0 if bias is None else bias.double()) - mean.double()) * scale
    return (weight.double() * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


@torch.no_grad()
def _fold_pair(parent: nn.Module, convolution: str, norm: str) -> None:
    layer = parent.get_submodule(convolution)
    assert isinstance(layer, nn.Conv2d)
    found = folded(layer.weight, layer.bias, parent.get_submodule(norm))
    if found is not None:
        layer.weight, layer.bias = (nn.Parameter(values, requires_grad=False) for values in found)
        setattr(parent, norm, nn.Identity())
