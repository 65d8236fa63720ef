"""FocalNet with depth-wise convolutions and norms after the residual sum.

Neither timm nor the public FocalNet has this variant, so it is implemented here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.image_encoders.layers import MLP, channels_first, channels_last, pad_to_multiple


@dataclass(frozen=True)
class FocalNetSize:
    """Dimensions of a FocalNet; the defaults are the published base model."""

    width: int = 128
    """Channels of the first stage; each stage doubles them."""
    depths: Sequence[int] = (2, 2, 18, 2)
    focal_levels: Sequence[int] = (3, 3, 3, 3)
    focal_windows: Sequence[int] = (3, 3, 3, 3)
    mlp_ratio: float = 4.0
    patch_size: int = 4


class FocalModulation(nn.Module):
    """Multiplies a query by context aggregated at growing distances, gated per level."""

    def __init__(self, width: int, levels: int, window: int) -> None:
        """Create a modulation with `levels` depth-wise convolutions, of kernel size `window`, `window` + 2, ..."""
        super().__init__()
        self.levels = levels
        self.f = nn.Linear(width, 2 * width + levels + 1)
        self.h = nn.Conv2d(width, width, 1)
        self.proj = nn.Linear(width, width)
        sides = [window + 2 * level for level in range(levels)]
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, side, padding=side // 2, groups=width, bias=False), nn.GELU())
            for side in sides
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        channels = x.shape[-1]
        mixed = channels_first(self.f(x))
        query, context, gates = mixed.split((channels, channels, self.levels + 1), dim=1)
        gathered = torch.zeros_like(context)
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            gathered = gathered + context * gates[:, level : level + 1]
        everywhere = F.gelu(context.mean(dim=(2, 3), keepdim=True))
        gathered = (gathered + everywhere * gates[:, self.levels :]) / (self.levels + 1)
        return self.proj(channels_last(query * self.h(gathered)))


class FocalBlock(nn.Module):
    """Depth-wise convolution, modulation, depth-wise convolution, MLP; norms follow the residual sums."""

    def __init__(self, width: int, levels: int, window: int, mlp_ratio: float) -> None:
        """Create a block of `width` channels."""
        super().__init__()
        self.dw1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.modulation = FocalModulation(width, levels, window)
        self.norm1 = nn.LayerNorm(width)
        self.dw2 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.norm2 = nn.LayerNorm(width)
        self.gamma_1 = nn.Parameter(torch.full((width,), 1e-4))
        self.gamma_2 = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        cells = channels_last(x + self.dw1(x))
        x = channels_first(self.norm1(cells + self.gamma_1 * self.modulation(cells)))
        cells = channels_last(x + self.dw2(x))
        return channels_first(self.norm2(cells + self.gamma_2 * self.mlp(cells)))


class PatchEmbed(nn.Module):
    """Overlapping convolution and norm: the stem, and the downsampling between stages."""

    def __init__(self, in_channels: int, channels: int, side: int, stride: int, padding: int) -> None:
        """Create a patch embedding; the input is padded to a multiple of `stride`."""
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, side, stride, padding)
        self.norm = nn.LayerNorm(channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)]."""
        return channels_first(self.norm(channels_last(self.proj(pad_to_multiple(x, self.stride)))))


class FocalStage(nn.Module):
    """Blocks of one width, and the downsampling to the next stage."""

    def __init__(self, size: FocalNetSize, stage: int) -> None:
        """Create stage number `stage`, from 0."""
        super().__init__()
        width = size.width * 2**stage
        self.blocks = nn.ModuleList(
            FocalBlock(width, size.focal_levels[stage], size.focal_windows[stage], size.mlp_ratio)
            for _ in range(size.depths[stage])
        )
        self.downsample: PatchEmbed | None = None
        if stage < len(size.depths) - 1:
            self.downsample = PatchEmbed(width, 2 * width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, 2 * C, ceil(H / 2), ceil(W / 2)]; the last stage keeps its shape."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class FocalNet(nn.Module):
    """Image encoder with a layer norm over the last feature map."""

    def __init__(self, size: FocalNetSize | None = None) -> None:
        """Create an encoder, of the published base size by default."""
        super().__init__()
        size = size or FocalNetSize()
        self.patch_embed = PatchEmbed(3, size.width, 7, size.patch_size, 3)
        self.layers = nn.ModuleList(FocalStage(size, stage) for stage in range(len(size.depths)))
        for stage in range(len(size.depths)):
            # Part of every published checkpoint; norms of the earlier stages' maps.
            self.add_module(f"norm{stage}", nn.LayerNorm(size.width * 2**stage))
        self.out_channels = size.width * 2 ** (len(size.depths) - 1)
        self.norm = nn.LayerNorm(self.out_channels)

    def feature_map(self, images: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, C, H / 32, W / 32], rounded up."""
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        return channels_first(self.norm(channels_last(x)))
