"""CLIP's vision transformer, from open_clip, as an encoder of whole images."""

from __future__ import annotations

from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from torch import Tensor, nn

from regionclip.clip.architectures import HEAD_WIDTH, CLIPArchitecture
from regionclip.clip.resnet import ModifiedResNet


class CLIPVisionTransformer(VisionTransformer):
    """Image encoder with the published keys of `visual.*`."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Create the image encoder of `architecture`, which has patches."""
        (layers,) = architecture.blocks
        super().__init__(
            image_size=architecture.image_resolution,
            patch_size=architecture.patch_size,
            width=architecture.width,
            layers=layers,
            heads=architecture.width // HEAD_WIDTH,
            mlp_ratio=4.0,
            output_dim=architecture.embedding_dim,
            act_layer=QuickGELU if architecture.quick_gelu else nn.GELU,
            norm_layer=LayerNorm,
        )
        self.architecture = architecture

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed whole images: normalized RGB [N, 3, resolution, resolution] to [N, embedding_dim]."""
        return self(images.to(self.conv1.weight.dtype))


def build_image_encoder(architecture: CLIPArchitecture) -> ModifiedResNet | CLIPVisionTransformer:
    """Return the image encoder of a CLIP size, with random weights and `embed_images`."""
    return CLIPVisionTransformer(architecture) if architecture.patch_size else ModifiedResNet(architecture)
