"""ViT-B/16 with normalized and averaged patch tokens, on timm's blocks."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


class MeanPooledViT(VisionTransformer):
    """timm's VisionTransformer as a dense encoder: the class token is used in attention and dropped at the end."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, image_size: int = 224) -> None:
        """Create an encoder; the published one is ViT-B/16 at 224 pixels."""
        super().__init__(
            img_size=image_size,
            patch_size=16,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="avg",
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.out_channels = width

    def feature_map(self, images: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, C, H / 16, W / 16]; crops up to 15 pixels at the right and bottom."""
        rows, columns = (side // 16 for side in images.shape[-2:])
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        x = tokens + self._positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:]).transpose(1, 2).unflatten(2, (rows, columns))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the positional embedding [1, 1 + rows * columns, C], resized without antialiasing as published."""
        side = int((self.pos_embed.shape[1] - 1) ** 0.5)
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
