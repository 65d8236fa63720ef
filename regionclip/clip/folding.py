"""Normalisation that no longer changes becomes part of the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regionclip.clip.resnet import Bottleneck, ModifiedResNet


def fold_tower(tower: ModifiedResNet) -> None:
    """Fold the normalisation of a tower into its convolutions, in place.

    In evaluation mode the tower computes the same, up to rounding. Its state-dict keys are no longer
    the published ones, and it cannot be trained: fold what was loaded, and only what is asked from
    then on.
    """
    for number in (1, 2, 3):
        _fold_pair(tower, f"conv{number}", f"bn{number}")
    for stage in tower.stages.values():
        fold_blocks(stage)


def fold_blocks(stage: nn.Module) -> None:
    """Fold the normalisation of the blocks of a residual stage, in place."""
    for block in stage.modules():
        if isinstance(block, Bottleneck):
            for number in (1, 2, 3):
                _fold_pair(block, f"conv{number}", f"bn{number}")
            if block.downsample is not None:
                _fold_pair(block.downsample, "0", "1")


def folded(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a convolution that also does what the normalisation after it does.

    Args:
        weight: float [C_out, C_in, k, k].
        bias: float [C_out]; None is zero.
        norm: BatchNorm, frozen or in evaluation mode.

    Returns:
        None for a layer whose statistics are those of its input.
    """
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        return None
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    shift = norm.bias.double() + ((0 if bias is None else bias.double()) - mean.double()) * scale
    return (weight.double() * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


@torch.no_grad()
def _fold_pair(parent: nn.Module, convolution: str, norm: str) -> None:
    layer = parent.get_submodule(convolution)
    assert isinstance(layer, nn.Conv2d)
    found = folded(layer.weight, layer.bias, parent.get_submodule(norm))
    if found is not None:
        layer.weight, layer.bias = (nn.Parameter(values, requires_grad=False) for values in found)
        setattr(parent, norm, nn.Identity())
