"""DaViT: window attention, then channel attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.image_encoders.layers import MLP, channels_first, channels_last, pad_to_multiple


@dataclass(frozen=True)
class DaViTSize:
    """Dimensions of a DaViT; the defaults are the published base model."""

    widths: Sequence[int] = (128, 256, 512, 1024)
    depths: Sequence[int] = (1, 1, 9, 1)
    heads: Sequence[int] = (4, 8, 16, 32)
    groups: Sequence[int] = (4, 8, 16, 32)
    patch_sizes: Sequence[int] = (7, 2, 2, 2)
    patch_strides: Sequence[int] = (4, 2, 2, 2)
    patch_paddings: Sequence[int] = (3, 0, 0, 0)
    window: int = 7
    mlp_ratio: float = 4.0


class Residual(nn.Module):
    """`x + fn(norm(x))` on maps [N, H, W, C]; the norm is optional (keys `norm`, `fn`)."""

    def __init__(self, fn: nn.Module, norm: nn.Module | None = None) -> None:
        """Wrap the module `fn`."""
        super().__init__()
        self.norm = norm
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        return x + self.fn(x if self.norm is None else self.norm(x))


class DepthwiseConvolution(nn.Module):
    """3x3 depth-wise convolution on channels-last maps (key `dw`)."""

    def __init__(self, width: int) -> None:
        """Create a convolution of `width` channels."""
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        return channels_last(self.dw(channels_first(x)))


class FeedForward(nn.Module):
    """MLP under the published key `net`."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        """Create an MLP of `width` channels."""
        super().__init__()
        self.net = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return self.net(x)


class WindowAttention(nn.Module):
    """Attention within windows, without shift and position bias."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        """Create an attention layer over windows of `window` x `window` cells."""
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]; zero-padded to whole windows, and padding is not masked."""
        images, height, width, channels = x.shape
        padded = channels_last(pad_to_multiple(channels_first(x), self.window))
        rows, columns = padded.shape[1] // self.window, padded.shape[2] // self.window
        # [N, rows, window, columns, window, C] -> [N * rows * columns, window * window, C]
        windows = padded.reshape(images, rows, self.window, columns, self.window, channels)
        tokens = windows.transpose(2, 3).reshape(-1, self.window**2, channels)
        # [B, T, 3 * C] -> three times [B, heads, T, C / heads]
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        merged = self.proj(attended).reshape(images, rows, columns, self.window, self.window, channels)
        return merged.transpose(2, 3).reshape(padded.shape)[:, :height, :width]


class ChannelAttention(nn.Module):
    """Attention between the channels of a group, over all cells of the image."""

    def __init__(self, width: int, groups: int) -> None:
        """Create an attention layer with `groups` groups of channels."""
        super().__init__()
        self.groups = groups
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        tokens = x.flatten(1, 2)  # [N, L, C]
        # [N, L, 3 * C] -> three times [N, groups, L, C / groups]
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.groups, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((query * tokens.shape[1] ** -0.5).transpose(-1, -2) @ key, dim=-1)
        attended = (weights @ value.transpose(-1, -2)).permute(0, 3, 1, 2).flatten(2)  # [N, L, C]
        return self.proj(attended).reshape(x.shape)


class SpatialBlock(nn.Module):
    """Convolution, window attention, convolution, MLP, each with a residual connection."""

    def __init__(self, width: int, heads: int, size: DaViTSize) -> None:
        """Create a block of `width` channels."""
        super().__init__()
        self.conv1 = Residual(DepthwiseConvolution(width))
        self.window_attn = Residual(WindowAttention(width, heads, size.window), nn.LayerNorm(width))
        self.conv2 = Residual(DepthwiseConvolution(width))
        self.ffn = Residual(FeedForward(width, size.mlp_ratio), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        return self.ffn(self.conv2(self.window_attn(self.conv1(x))))


class ChannelBlock(nn.Module):
    """Convolution, channel attention, convolution, MLP, each with a residual connection."""

    def __init__(self, width: int, groups: int, size: DaViTSize) -> None:
        """Create a block of `width` channels."""
        super().__init__()
        self.conv1 = Residual(DepthwiseConvolution(width))
        self.channel_attn = Residual(ChannelAttention(width, groups), nn.LayerNorm(width))
        self.conv2 = Residual(DepthwiseConvolution(width))
        self.ffn = Residual(FeedForward(width, size.mlp_ratio), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        return self.ffn(self.conv2(self.channel_attn(self.conv1(x))))


class DualBlock(nn.Module):
    """A spatial block followed by a channel block: one unit of depth."""

    def __init__(self, width: int, heads: int, groups: int, size: DaViTSize) -> None:
        """Create both blocks."""
        super().__init__()
        self.spatial_block = SpatialBlock(width, heads, size)
        self.channel_block = ChannelBlock(width, groups, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H, W, C]."""
        return self.channel_block(self.spatial_block(x))


class ConvolutionalEmbed(nn.Module):
    """Strided convolution, followed (stem) or preceded (between stages) by a norm."""

    def __init__(self, in_channels: int, channels: int, size: DaViTSize, stage: int) -> None:
        """Create the patch embedding of stage number `stage`."""
        super().__init__()
        self.norm_first = stage > 0
        side, stride, padding = (sizes[stage] for sizes in (size.patch_sizes, size.patch_strides, size.patch_paddings))
        self.proj = nn.Conv2d(in_channels, channels, side, stride, padding)
        self.norm = nn.LayerNorm(in_channels if self.norm_first else channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, H, W, C] to [N, H', W', C'], rounded down."""
        if self.norm_first:
            x = self.norm(x)
        x = channels_last(self.proj(channels_first(x)))
        return x if self.norm_first else self.norm(x)


class DaViT(nn.Module):
    """Image encoder whose norm is applied after the mean over a region."""

    def __init__(self, size: DaViTSize | None = None) -> None:
        """Create an encoder, of the published base size by default."""
        super().__init__()
        size = size or DaViTSize()
        channels = (3, *size.widths)
        self.convs = nn.ModuleList(
            ConvolutionalEmbed(channels[stage], width, size, stage) for stage, width in enumerate(size.widths)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DualBlock(width, size.heads[stage], size.groups[stage], size) for _ in range(depth)))
            for stage, (width, depth) in enumerate(zip(size.widths, size.depths, strict=True))
        )
        self.out_channels = size.widths[-1]
        self.norm = nn.LayerNorm(self.out_channels)

    def feature_map(self, images: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, C, H / 32, W / 32], rounded down, without the final norm."""
        x = channels_last(images)
        for embed, blocks in zip(self.convs, self.blocks, strict=True):
            x = blocks(embed(x))
        return channels_first(x)
