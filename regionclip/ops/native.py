"""The C++ and CUDA operators as `torch.ops.regionclip.*`, with fake kernels and gradients for torch."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from regionclip.ops import native_cuda
from regionclip.ops.sampling import Pooling
from regionclip.ops.soft_nms_rule import METHODS, SoftNMSRule

EXTENSION, CUDA_EXTENSION = "regionclip.ops._native", "regionclip.ops._native_cuda"
NOT_BUILT = "they are not built"
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
"""Values of REGIONCLIP_ISA, slowest first; `baseline` is SSE2 or NEON."""


def load() -> str:
    """Load the built extensions; return why there is none, or an empty string."""
    problem = _load(EXTENSION)
    cuda_problem = "" if problem else _load(CUDA_EXTENSION)
    if cuda_problem and cuda_problem != NOT_BUILT:
        warnings.warn(f"regionclip's operators run on the CPU only: for CUDA {cuda_problem}", stacklevel=2)
    return problem


def _load(extension: str) -> str:
    try:
        importlib.import_module(extension)
    except ImportError as error:
        return NOT_BUILT if error.name == extension else f"they cannot be loaded ({error})"
    return ""


def supports(device_type: str) -> bool:
    """Return whether the extension was built for a device type."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("regionclip::roi_align", device_type.upper())


def instruction_set() -> str:
    """Return the instruction set of the CPU operators, one of `INSTRUCTION_SETS`.

    It is the best that the processor supports, unless the environment variable REGIONCLIP_ISA names a lesser one;
    raises `RuntimeError` if that is none of them.
    """
    return INSTRUCTION_SETS[torch.ops.regionclip.instruction_set()]


def roi_align(features: Tensor, rois: Tensor, pooling: Pooling, memory_format: torch.memory_format) -> Tensor:
    """Compute RoIAlign; the feature gradient is exact, and bit-identical for any number of threads on a CPU."""
    return torch.ops.regionclip.roi_align(
        features,
        rois,
        *pooling.output_size,
        pooling.spatial_scale,
        pooling.sampling_ratio,
        pooling.aligned,
        memory_format == torch.channels_last,
    )


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, limit: int) -> Tensor:
    """Apply NMS; with a limit, boxes that cannot be among the first are skipped."""
    return torch.ops.regionclip.nms(boxes, scores, classes, iou_threshold, limit)


def soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor | None, rule: SoftNMSRule, limit: int
) -> tuple[Tensor, Tensor]:
    """Apply soft-NMS; a box is decayed lazily, when it comes to the top."""
    method = METHODS.index(rule.method)
    return torch.ops.regionclip.soft_nms(
        boxes, scores, classes, method, rule.sigma, rule.iou_threshold, rule.prune_threshold, limit
    )


def register() -> None:
    """Register output shapes and gradients of the operators with torch; called once after loading."""
    if supports("cuda"):
        native_cuda.register()
    torch.library.register_fake("regionclip::roi_align", _fake_roi_align)
    torch.library.register_fake("regionclip::roi_align_backward", _fake_roi_align_backward)
    torch.library.register_fake("regionclip::nms", _fake_nms)
    torch.library.register_fake("regionclip::soft_nms", _fake_soft_nms)
    torch.library.register_autograd("regionclip::roi_align", _backward, setup_context=_remember)
    torch.library.register_autograd("regionclip::roi_align_backward", _double_backward, setup_context=_remember_twice)


def _dense(like: Tensor, shape: tuple[Any, ...], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _fake_roi_align(
    features: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
) -> Tensor:
    return _dense(features, (rois.shape[0], features.shape[1], height, width), channels_last)


def _fake_roi_align_backward(
    gradient: Tensor,
    rois: Tensor,
    images: int,
    channels: int,
    map_height: int,
    map_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    return _dense(gradient, (images, channels, map_height, map_width), channels_last)


def _fake_nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, limit: int) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _fake_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    method: int,
    sigma: float,
    iou_threshold: float,
    prune_threshold: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(count, dtype=torch.int64), scores.new_empty(count)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, *ctx.rules = inputs
    ctx.save_for_backward(rois)
    ctx.map_shape = features.shape


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    result = torch.ops.regionclip.roi_align_backward(gradient, rois, *ctx.map_shape, *ctx.rules, deterministic)
    return (result, *[None] * 7)


def _remember_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, rois, _, _, _, _, *rules, _ = inputs
    ctx.rules = rules
    ctx.save_for_backward(rois)
    ctx.output_size = gradient.shape[-2:]


def _double_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    # RoIAlign is linear in the features, so the adjoint of its adjoint is RoIAlign itself.
    (rois,) = ctx.saved_tensors
    return (torch.ops.regionclip.roi_align(gradient, rois, *ctx.output_size, *ctx.rules), *[None] * 10)
