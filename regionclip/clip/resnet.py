"""CLIP's ModifiedResNet in plain PyTorch: three-convolution stem, average pooling for strides."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.architectures import STAGES, CLIPArchitecture
from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.ops.fused_convolution import convolution_relu

NormFactory = Callable[[int], nn.Module]
"""Creates the normalization layer for a number of channels."""


class Bottleneck(nn.Module):
    """Residual block whose stride is an average pool before the last convolution."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormFactory) -> None:
        """Create a block from `in_channels` to `expansion * channels` channels."""
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_channels != out_channels:
            # The shortcut's pool has no parameters: published keys start at the convolution.
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, 4 * channels, H // stride, W // stride]."""
        # In place: on a CPU, allocating memory costs more than the sum or ReLU.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.pool(out)))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        # Autocast can leave one of them in half precision.
        total = out.add_(shortcut) if out.dtype == shortcut.dtype else out + shortcut
        return F.relu(total, inplace=True)


class ModifiedResNet(nn.Module):
    """CLIP's image encoder up to `res5`, with the published state-dict keys."""

    def __init__(
        self,
        architecture: CLIPArchitecture,
        norm: NormFactory = nn.BatchNorm2d,
        *,
        with_attention_pool: bool = True,
    ) -> None:
        """Create an encoder; without the attention pool it only gives feature maps."""
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = norm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = norm(width)
        in_channels = (width, *architecture.stage_channels.values())
        for i, ((before, after), blocks) in enumerate(zip(pairwise(in_channels), architecture.blocks, strict=True)):
            channels = after // Bottleneck.expansion
            stage = [Bottleneck(before, channels, 1 if i == 0 else 2, norm)]
            stage += [Bottleneck(after, channels, 1, norm) for _ in range(blocks - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.attnpool: nn.Module | None = None
        if with_attention_pool:
            self.attnpool = AttentionPool2d(
                architecture.attention_grid,
                architecture.attention_width,
                architecture.attention_heads,
                architecture.embedding_dim,
            )

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The four residual stages by the name of their output."""
        return {name: self.get_submodule(f"layer{i + 1}") for i, name in enumerate(STAGES)}

    def stem(self, x: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, width, H / 4, W / 4] (rounded down twice)."""
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            folded = isinstance(bn, nn.Identity)
            x = convolution_relu(conv, x) if folded else F.relu(bn(conv(x)), inplace=True)
        return F.avg_pool2d(x, 2)

    def feature_maps(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Compute the feature maps called `names`, running only the stages they need.

        Args:
            images: float [N, 3, H, W], RGB, normalized by CLIP's mean and standard deviation.
            names: among `stem`, `res2`, `res3`, `res4`, `res5` (strides 4, 4, 8, 16, 32).

        Returns:
            `{name: float [N, C, H', W']}` in order of depth.
        """
        x = self.stem(images.to(self.conv1.weight.dtype))
        maps = {"stem": x} if "stem" in names else {}
        remaining = set(names) - {"stem"}
        for name, stage in self.stages.items():
            if not remaining:
                break
            x = stage(x)
            if name in remaining:
                maps[name] = x
                remaining.remove(name)
        return maps

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed whole images: normalized RGB [N, 3, resolution, resolution] to [N, embedding_dim].

        Raises:
            ValueError: the encoder was built without its attention pool.
        """
        if self.attnpool is None:
            raise ValueError("this image encoder was built without an attention pool; ask for feature_maps() instead")
        return self.attnpool(self.feature_maps(images, ["res5"])["res5"])
