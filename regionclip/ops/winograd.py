"""Winograd convolution for inference on a CPU (Lavin and Gray, 2016)."""

from __future__ import annotations

import threading
from math import ceil, isqrt, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.ops import native
from regionclip.ops.fused_convolution import convolve_relu
from regionclip.ops.implementation import implementation

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
"""Interpolation points of a tile, in addition to infinity; csrc/cpu/winograd_block.inl has the same."""

MIN_CHANNELS = 128
MIN_TILES = 16
CELLS_AT_MOST = 1.31
"""With fewer channels or tiles, or more tile cells per map cell, the transforms cost more than is saved."""

BYTES_AT_ONCE = 1 << 24
"""Chunk size of the transformed inputs and of the products, so that both stay in the last-level cache."""

LANES = 16
"""Channels per step of the native transforms."""


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 by Winograd's algorithm, exact up to rounding.

    Overlapping 6x6 windows of the map each give a 4x4 tile of the result. In the transformed domain the
    convolution is a sum over channels only: 36 products instead of the direct convolution's 144, or 16 instead
    of 36 with 2x2 tiles, which round less. Used on a CPU with the native operators and without gradients;
    everywhere else the layer is a direct convolution.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype = torch.float32,
        *,
        relu: bool = False,
    ) -> None:
        """Create a layer.

        Args:
            weight: float32 [K, C, 3, 3].
            bias: float32 [K].
            dtype: of the maps and of the products.
            relu: apply ReLU.
        """
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        # Larger tiles accumulate more rounding errors.
        self.tile = 4 if dtype == torch.float32 else 2
        self.relu = relu
        self._factors: Tensor | None = None
        if dtype == torch.bfloat16:  # transformed in float32, so that they are rounded once
            self._factors = transform_weights(weight.detach(), self.tile).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, K, H, W]."""
        if self._pays(x):
            if self._factors is None:  # four times the memory of the weights, never needed for small inputs
                self._factors = transform_weights(self.weight, self.tile)
            return convolve(x, self._factors, self.bias, relu=self.relu)
        direct = convolve_relu if self.relu else F.conv2d
        return direct(x, self.weight, self.bias, padding=(1, 1))

    def _pays(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.dtype != self.weight.dtype or x.dtype not in (torch.float32, torch.bfloat16):
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or implementation(x.device) is not native:
            return False
        tiles = count_tiles(x, self.tile)
        cells = x.shape[0] * x.shape[2] * x.shape[3]
        return tiles >= MIN_TILES and tiles * self.tile**2 <= CELLS_AT_MOST * cells


def suits_winograd(layer: nn.Conv2d) -> bool:
    """Return whether `WinogradConv2d` can replace a convolution, with enough channels to be faster."""
    channels = (layer.in_channels, layer.out_channels)
    return (
        tuple(layer.kernel_size) == (3, 3)
        and all(tuple(pair) == (1, 1) for pair in (layer.stride, layer.padding, layer.dilation))
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(channels) >= MIN_CHANNELS
        and not any(count % LANES for count in channels)
    )


def transform_weights(weight: Tensor, tile: int) -> Tensor:
    """Return the transformed weights [n * n, C, K], n = tile + 2, of weights [K, C, 3, 3]."""
    points = POINTS[tile]
    # Row p evaluates a quadratic polynomial at a point, scaled for the interpolation.
    rows = [[p**i / prod(p - q for q in points if q != p) for i in range(3)] for p in points] + [[0.0, 0.0, 1.0]]
    matrix = torch.tensor(rows, dtype=torch.float64, device=weight.device)
    factors = matrix @ weight.double() @ matrix.T  # [K, C, n, n]
    return factors.to(weight.dtype).flatten(2).permute(2, 1, 0).contiguous()


def count_tiles(x: Tensor, tile: int) -> int:
    """Return the number of tiles that cover the maps [N, C, H, W]."""
    return x.shape[0] * ceil(x.shape[2] / tile) * ceil(x.shape[3] / tile)


def convolve(x: Tensor, factors: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """Convolve maps with transformed weights, by the native operators.

    Args:
        x: float32 or bfloat16 [N, C, H, W] on a CPU; C is a multiple of 16.
        factors: [n * n, C, K] from `transform_weights`, float32 or in the dtype of `x`; K is a multiple of 16.
        bias: [K].
        relu: apply ReLU.

    Returns:
        [N, K, H, W] in the dtype of `x`, channels-last.
    """
    components, channels, out_channels = factors.shape
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (x.shape[0], out_channels, *x.shape[2:])
    result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    bias = None if bias is None else bias.float()
    tiles = count_tiles(x, isqrt(components) - 2)
    at_once = max(1, BYTES_AT_ONCE // (components * max(channels, out_channels) * factors.itemsize))
    for first in range(0, tiles, at_once):
        count = min(at_once, tiles - first)
        windows = _workspace("windows", (components, count, channels), factors.dtype)
        products = _workspace("products", (components, count, out_channels), factors.dtype)
        torch.ops.regionclip.winograd_windows(x, first, windows)
        torch.bmm(windows, factors, out=products)
        torch.ops.regionclip.winograd_assemble(products, bias, relu, first, result)
    return result


_memory = threading.local()


def _workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a reused buffer of this thread: fresh memory costs more than the transforms."""
    size = prod(shape) * dtype.itemsize
    found: Tensor | None = getattr(_memory, name, None)
    if found is None or len(found) < size:
        found = torch.empty(size, dtype=torch.uint8)
        setattr(_memory, name, found)
    return found[:size].view(dtype).view(shape)
