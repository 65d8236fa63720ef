"""CLIP image encoders as Detectron2 backbones."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.resnet import ModifiedResNet, NormFactory
from regionclip.config.resolve import clip_architecture, uses_attention_pool

_STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class CLIPResNetBackbone(ModifiedResNet, Backbone):
    """CLIP's ModifiedResNet with Detectron2's backbone interface and the published state-dict keys."""

    def __init__(
        self,
        architecture: CLIPArchitecture,
        out_features: Sequence[str],
        *,
        norm: NormFactory,
        freeze_at: int = 0,
        with_attention_pool: bool = False,
    ) -> None:
        """Create a backbone.

        Args:
            architecture: the CLIP size.
            out_features: feature maps to return, among `stem`, `res2` ... `res5`.
            norm: factory of the normalization layers.
            freeze_at: 1 freezes the stem, 2 also `layer1` ... 5 also `layer4`; the attention pool
                is always trained.
            with_attention_pool: include the attention pool, which the RoI head applies.
        """
        super().__init__(architecture, norm, with_attention_pool=with_attention_pool)
        self.out_features = tuple(out_features)
        frozen: list[nn.Module] = [self.conv1, self.conv2, self.conv3, *self.stages.values()]
        stem_parts = 3
        for module in frozen[: stem_parts + freeze_at - 1] if freeze_at else []:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized RGB [N, 3, H, W] to `{name: [N, C, H / stride, W / stride]}`, rounded down.

        Images smaller than the largest stride are zero-padded to it: pooling would leave an empty map.
        """
        smallest = max(_STRIDES[name] for name in self.out_features)
        height, width = images.shape[-2:]
        padding = (0, max(smallest - width, 0), 0, max(smallest - height, 0))
        return self.feature_maps(F.pad(images, padding) if any(padding) else images, self.out_features)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map that `forward` returns."""
        channels = {"stem": self.architecture.width, **self.architecture.stage_channels}
        return {name: ShapeSpec(channels=channels[name], stride=_STRIDES[name]) for name in self.out_features}


def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CLIPResNetBackbone:
    """Build the CLIP backbone of a C4 detector, with the attention pool if the RoI head uses it."""
    return CLIPResNetBackbone(
        clip_architecture(cfg),
        cfg.MODEL.RESNETS.OUT_FEATURES,
        norm=lambda channels: get_norm(cfg.MODEL.RESNETS.NORM, channels),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        with_attention_pool=uses_attention_pool(cfg),
    )


def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN on a CLIP backbone (keys `bottom_up.*`, `fpn_*`)."""
    return FPN(
        bottom_up=build_clip_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def clip_image_encoder(backbone: nn.Module) -> ModifiedResNet | None:
    """Return the CLIP image encoder inside a backbone, with or without an FPN; None if there is none."""
    image_encoder = getattr(backbone, "bottom_up", backbone)
    return image_encoder if isinstance(image_encoder, ModifiedResNet) else None
