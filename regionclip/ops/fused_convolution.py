"""Convolutions fused with ReLU and addition, for inference on a CPU.

Uses the oneDNN operators of torch's compiler; where these do not apply, the same is computed in separate
steps. Feature maps of a backbone exceed the caches, and fresh memory is slow: each separate step costs as
much as some convolutions.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]


def convolution_relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the ReLU of a convolution layer with zero padding."""
    padding, stride, dilation = (cast(Pair, pair) for pair in (layer.padding, layer.stride, layer.dilation))
    return convolve_relu(x, layer.weight, layer.bias, stride, padding, dilation, layer.groups)


def convolve_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return the ReLU of a convolution of [N, C, H, W]; arguments as of `torch.nn.functional.conv2d`."""
    if not _can_fuse(x, weight):
        return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups), inplace=True)
    options = (padding, stride, dilation, groups)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *options, "relu", [], None)


def add_convolved(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the ReLU of `total` plus a 1x1 convolution, in the memory of `total`.

    Args:
        total: [N, K, H, W].
        x: [N, C, H, W].
        weight: [K, C, 1, 1].
        bias: [K].
    """
    if not (_can_fuse(x, weight) and total.dtype == x.dtype and _is_channels_last(total)):
        return F.relu(total.add_(F.conv2d(x, weight, bias)), inplace=True)
    options = ((0, 0), (1, 1), (1, 1), 1)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, weight, bias, *options, "add", 1.0, "relu", [], None
    )


def _can_fuse(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != weight.dtype or not _is_channels_last(x) or not _supports(x.dtype):
        return False
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling() and bool(torch.backends.mkldnn.enabled)


def _is_channels_last(x: Tensor) -> bool:
    # oneDNN cannot determine the layout of a map with one channel or cell.
    return x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _supports(dtype: torch.dtype) -> bool:
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_convolution_pointwise_"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())
