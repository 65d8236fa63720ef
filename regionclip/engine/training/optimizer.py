"""Optimizers of the config key SOLVER.OPTIMIZER."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.98), 1e-6
"""AdamW hyperparameters of CLIP's training."""


def make_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return Detectron2's SGD, or AdamW with Detectron2's weight decay and clipping options."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    groups = get_default_optimizer_params(
        model,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        # As in CLIP: no weight decay on biases and temperature, unless SOLVER.WEIGHT_DECAY_BIAS says so.
        overrides={
            "logit_scale": {"weight_decay": 0.0},
            "bias": {"weight_decay": cfg.SOLVER.WEIGHT_DECAY_BIAS or 0.0},
        },
    )
    adam = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adam(groups, lr=cfg.SOLVER.BASE_LR, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)
