"""The precision of training with SOLVER.AMP.ENABLED."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from regionclip.modeling.inference.precision import PRECISIONS, usable_precision


def autocast_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Return float16 on a GPU and bfloat16 on a CPU; None, which is float32, without AMP or where it is emulated.

    Raises:
        UserError: the CPU emulates bfloat16, and MODEL.CLIP.EMULATED_PRECISION is `error`.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if device.type == "cuda":
        return torch.float16
    name = usable_precision("bfloat16", device, cfg.MODEL.CLIP.EMULATED_PRECISION, key="SOLVER.AMP.ENABLED")
    return None if name == "float32" else PRECISIONS[name]
