"""Half precision where the processor supports it natively; emulation is slower than float32."""

from __future__ import annotations

import logging
import platform

import torch

from regionclip.errors import user_error
from regionclip.ops import native, native_problem

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of MODEL.CLIP.INFERENCE_PRECISION."""

WHEN_EMULATED = ("replace", "error", "keep")
"""Values of MODEL.CLIP.EMULATED_PRECISION."""


def is_native(precision: str, device: torch.device | str) -> bool:
    """Return whether a device natively computes in one of `PRECISIONS`; every GPU is assumed to."""
    if precision == "float32" or torch.device(device).type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if precision == "float16":
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    limited = not native_problem("cpu") and native.instruction_set() != native.INSTRUCTION_SETS[-1]
    # AVX-512 without BF16 instructions converts each factor to float32 and back.
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_products and not limited


def usable_precision(
    precision: str,
    device: torch.device | str,
    when_emulated: str = "replace",
    *,
    key: str = "MODEL.CLIP.INFERENCE_PRECISION",
) -> str:
    """Return the precision to compute in on a device.

    Args:
        precision: the requested one of `PRECISIONS`.
        device: device of the convolutions.
        when_emulated: one of `WHEN_EMULATED`: float32 with a log message, an error, or as requested.
        key: asked for it, for messages.

    Raises:
        UserError: the precision is emulated and `when_emulated` is `error`.
    """
    if when_emulated == "keep" or is_native(precision, device):
        return precision
    if when_emulated == "error":
        actual = f"{precision!r}, which it emulates"
        raise user_error(key, "a precision that this processor computes in", actual, f"leave {key} out")
    logger.warning("%s: this processor emulates %s, which is slower; float32 is used", key, precision)
    return "float32"
