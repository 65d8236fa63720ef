"""Optimization of a loaded detector for inference."""

from __future__ import annotations

from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from regionclip.clip.architectures import STAGES
from regionclip.clip.folding import FoldedBottleneck, fold_image_encoder, folded
from regionclip.clip.resnet import ModifiedResNet
from regionclip.modeling.backbones.clip_resnet import clip_image_encoder
from regionclip.modeling.detector import OpenVocabularyDetector
from regionclip.modeling.heads.region_encoder import BorrowsLastStage
from regionclip.modeling.inference.hoisted_convolutions import HoistedConvolutionsEncoder
from regionclip.modeling.inference.precision import PRECISIONS, usable_precision
from regionclip.modeling.proposals.cache import cache_of
from regionclip.modeling.proposals.rpn import ExactRPN
from regionclip.ops import WinogradConv2d, native_problem, suits_winograd

ROUNDED_FROM = ("stem", *STAGES)
"""Values of MODEL.CLIP.INFERENCE_PRECISION_FROM."""


def prepare_as_configured(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Optimize a detector as MODEL.CLIP.INFERENCE_PRECISION, INFERENCE_PRECISION_FROM and EMULATED_PRECISION say.

    Raises:
        UserError: the processor emulates the precision, and EMULATED_PRECISION makes that an error.
    """
    clip = cfg.MODEL.CLIP
    options = clip.INFERENCE_PRECISION, clip.INFERENCE_PRECISION_FROM, clip.EMULATED_PRECISION
    if isinstance(model, OpenVocabularyDetector):
        return model.prepare_for_inference(*options)
    return prepare_for_inference(model, *options)


def prepare_for_inference(
    model: nn.Module, precision: str = "float32", first_stage: str = "res5", when_emulated: str = "replace"
) -> nn.Module:
    """Optimize a detector in place for inference, and return it in evaluation mode.

    Normalization is folded into the convolutions, weights become channels-last, 3x3 convolutions use Winograd's
    algorithm, and RoI heads on CLIP's last stage hoist convolutions before RoIAlign: results stay the same up to
    rounding. State-dict keys are no longer the published ones, and the model can no longer be trained.

    Args:
        model: with loaded weights, on its device.
        precision: of the convolutions of the RPN and of the last stages, one of `PRECISIONS`. Below float32 the
            results change; docs/performance.md says by how much. Everything else stays in float32, and
            so do the first convolution and the shortcut of `res5`.
        first_stage: first stage of the image encoder in that precision, one of `ROUNDED_FROM`.
        when_emulated: what to do on a processor without that precision, one of `precision.WHEN_EMULATED`.

    Raises:
        UserError: the processor emulates the precision and `when_emulated` is `error`.
    """
    model.eval().requires_grad_(False)
    if (cache := cache_of(model)) is not None:
        cache.identify()
    devices = {values.device for values in model.parameters()}
    for device in devices:
        precision = usable_precision(precision, device, when_emulated)
    backbone = getattr(model, "backbone", None)
    image_encoder = clip_image_encoder(backbone) if backbone is not None else None
    heads: Any = getattr(model, "roi_heads", None)
    for owner in (backbone, getattr(model, "offline_backbone", None), heads):
        if owner is not None:
            _fold(owner)
    if image_encoder is not None and hasattr(heads, "borrow"):
        heads.borrow(image_encoder)  # folding replaced its attention pool
    if isinstance(heads, BorrowsLastStage) and image_encoder is not None:
        heads.region_encoder = HoistedConvolutionsEncoder(
            heads.pooler, image_encoder.stages["res5"], image_encoder.attnpool
        )
        _convolve_in(model, image_encoder, PRECISIONS[precision], first_stage)
    _use_winograd(model, torch.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@torch.no_grad()
def _fold(owner: nn.Module) -> None:
    """Fold normalization into the convolutions of a backbone or of RoI heads."""
    for module in list(owner.modules()):
        if isinstance(module, ModifiedResNet):
            fold_image_encoder(module)
        elif isinstance(module, Conv2d) and module.norm is not None:
            found = folded(module.weight, module.bias, module.norm)
            if found is not None:
                module.weight, module.bias = (nn.Parameter(values, requires_grad=False) for values in found)
                module.norm = None
    for module in list(owner.modules()):
        for number, (name, block) in enumerate(list(module.named_children())):
            if type(block) is BottleneckBlock:
                layers = cast(Any, block)
                *convolutions, shortcut = (layers.conv1, layers.conv2, layers.conv3, layers.shortcut)
                if all(layer is None or layer.norm is None for layer in (*convolutions, shortcut)):
                    setattr(module, name, FoldedBottleneck(convolutions, shortcut, keeps_input=number == 0))


def _convolve_in(model: nn.Module, image_encoder: ModifiedResNet, dtype: torch.dtype, first_stage: str) -> None:
    """Convert the RPN's convolutions, and the image encoder from a stage on, to a dtype.

    The last stage runs once per region. Earlier stages run once per image, and their rounding is what changes
    scores, as does that of the last stage's first convolution and shortcut, which therefore stay in float32.
    """
    if dtype == torch.float32:
        return
    *earlier, last = (
        stage for name, stage in image_encoder.stages.items() if name >= first_stage or first_stage == "stem"
    )
    _use_winograd(last, dtype)
    first_block, *blocks = cast(nn.Sequential, last)
    parts = [*earlier, cast(nn.Module, first_block.conv2), cast(nn.Module, first_block.conv3), *blocks]
    if first_stage == "stem":
        parts += [image_encoder.conv1, image_encoder.conv2, image_encoder.conv3]
    if getattr(model, "offline_backbone", None) is not None:
        model.offline_preprocessor.dtype = dtype
        parts.append(cast(nn.Module, model.offline_backbone))
        for module in model.modules():
            if isinstance(module, ExactRPN):
                _use_winograd(module.rpn_head, dtype)
                parts.append(module.rpn_head.conv)
                module.rpn_head.conv.register_forward_hook(_to_float32)
    for part in parts:
        _use_winograd(part, dtype)
        part.to(dtype)


def _use_winograd(part: nn.Module, dtype: torch.dtype) -> None:
    """Replace convolutions in a module by Winograd convolutions, where these are supported."""
    if native_problem("cpu") or any(values.device.type != "cpu" for values in part.parameters()):
        return
    for module in list(part.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d) and suits_winograd(layer) and getattr(layer, "norm", None) is None:
                activation = getattr(layer, "activation", None)
                relu = isinstance(activation, nn.ReLU) or (isinstance(module, FoldedBottleneck) and name == "conv2")
                if relu or activation is None:
                    setattr(module, name, WinogradConv2d(layer.weight, layer.bias, dtype, relu=relu))
        if isinstance(module, FPN):
            # FPN also keeps its output convolutions in a list, from the coarsest level to the finest.
            outputs = [layer for name, layer in module.named_children() if name.startswith("fpn_output")]
            module.output_convs = outputs[::-1]


def _to_float32(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()
