"""Transformer image encoders with dense feature maps as Detectron2 backbones."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.image_encoders.davit import DaViT, DaViTSize
from regionclip.clip.image_encoders.focalnet import FocalNet, FocalNetSize
from regionclip.clip.image_encoders.vit import MeanPooledViT

FEATURE = "stage5"
"""Name of the single feature map that the RoI head reads."""


class DenseImageEncoder(Backbone):
    """Image encoder with a single feature map, and pooling of a region's cells into one vector."""

    stride = 32

    def feature_map(self, images: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, C, H / stride, W / stride]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature map under its name; images smaller than the stride are zero-padded to it."""
        height, width = images.shape[-2:]
        padding = (0, max(self.stride - width, 0), 0, max(self.stride - height, 0))
        return {FEATURE: self.feature_map(F.pad(images, padding) if any(padding) else images)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the feature map."""
        return {FEATURE: ShapeSpec(channels=self.out_channels, stride=self.stride)}

    def pool_region(self, cells: Tensor) -> Tensor:
        """Pool the RoIAlign cells [R, C, h, w] of regions into vectors [R, C]."""
        return cells.mean(dim=(2, 3))


class ViTBackbone(MeanPooledViT, DenseImageEncoder):
    """ViT-B/16, normalized before pooling."""

    stride = 16

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the feature map under its name."""
        return DenseImageEncoder.forward(self, images)


class FocalNetBackbone(FocalNet, DenseImageEncoder):
    """FocalNet-B, normalized before pooling."""


class DaViTBackbone(DaViT, DenseImageEncoder):
    """DaViT-B, normalized after pooling."""

    def pool_region(self, cells: Tensor) -> Tensor:
        """Pool the RoIAlign cells [R, C, h, w] of regions into layer-normalized vectors [R, C]."""
        return self.norm(cells.mean(dim=(2, 3)))


class SwinBackbone(SwinTransformer, DenseImageEncoder):
    """Swin-B on Detectron2's SwinTransformer, normalized before pooling."""

    def __init__(
        self, width: int, depths: Sequence[int], heads: Sequence[int], window: int, mlp_ratio: float, patch_size: int
    ) -> None:
        """Create an encoder; the norms of the earlier stages exist because every published checkpoint has them."""
        super().__init__(
            patch_size=patch_size,
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            mlp_ratio=mlp_ratio,
            drop_path_rate=0.0,
            out_indices=tuple(range(len(depths) - 1)),
        )
        self.out_channels = width * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.out_channels)

    def feature_map(self, images: Tensor) -> Tensor:
        """Map normalized RGB [N, 3, H, W] to [N, C, H / 32, W / 32], rounded up."""
        x = self.patch_embed(images)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # [N, L, C]
        for layer in self.layers:
            x_out, out_height, out_width, x, height, width = layer(x, height, width)
        return self.norm(x_out).transpose(1, 2).unflatten(2, (out_height, out_width))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature map under its name."""
        return DenseImageEncoder.forward(self, images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the feature map."""
        return DenseImageEncoder.output_shape(self)

    @property
    def size_divisibility(self) -> int:
        """0: the encoder pads its input itself."""
        return 0


def build_clip_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTBackbone:
    """Build ViT-B/16."""
    return ViTBackbone(image_size=cfg.MODEL.VIT.IMG_SIZE)


def build_clip_focal_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FocalNetBackbone:
    """Build the FocalNet that MODEL.FOCAL describes."""
    node = cfg.MODEL.FOCAL
    size = FocalNetSize(
        node.EMBED_DIM, node.DEPTHS, node.FOCAL_LEVELS, node.FOCAL_WINDOWS, node.MLP_RATIO, node.PATCH_SIZE
    )
    return FocalNetBackbone(size)


def build_clip_davit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DaViTBackbone:
    """Build the DaViT that MODEL.DAVIT describes."""
    node = cfg.MODEL.DAVIT
    size = DaViTSize(
        widths=node.DIM_EMBED,
        depths=node.DEPTHS,
        heads=node.NUM_HEADS,
        groups=node.NUM_GROUPS,
        patch_sizes=node.PATCH_SIZE,
        patch_strides=node.PATCH_STRIDE,
        patch_paddings=node.PATCH_PADDING,
        window=node.WINDOW_SIZE,
    )
    return DaViTBackbone(size)


def build_clip_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build the Swin that MODEL.SWIN describes."""
    node = cfg.MODEL.SWIN
    return SwinBackbone(node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS, node.WINDOW_SIZE, node.MLP_RATIO, node.PATCH_SIZE)
