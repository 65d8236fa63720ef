"""Optimizers of the config key SOLVER.OPTIMIZER."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

FULL_MODEL = "full_model"
"""Value of SOLVER.CLIP_GRADIENTS.CLIP_TYPE, in addition to those of Detectron2, which clip each parameter alone."""


def make_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return Detectron2's SGD, or AdamW with Detectron2's weight decay and clipping options.

    SOLVER.CLIP_GRADIENTS.CLIP_TYPE `full_model` clips the norm of all gradients together, as DETR's family does.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD" and solver.CLIP_GRADIENTS.CLIP_TYPE != FULL_MODEL:
        return build_optimizer(cfg, model)
    decays = {"weight_decay": solver.WEIGHT_DECAY, "weight_decay_norm": solver.WEIGHT_DECAY_NORM}
    if solver.OPTIMIZER == "SGD":
        bias = {"bias_lr_factor": solver.BIAS_LR_FACTOR, "weight_decay_bias": solver.WEIGHT_DECAY_BIAS}
        groups = get_default_optimizer_params(model, base_lr=solver.BASE_LR, **decays, **bias)
        sgd: Any = _with_clipping(cfg, torch.optim.SGD)
        return sgd(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    # As in CLIP: no weight decay on biases and temperature, unless SOLVER.WEIGHT_DECAY_BIAS says so.
    exempt = {"logit_scale": {"weight_decay": 0.0}, "bias": {"weight_decay": solver.WEIGHT_DECAY_BIAS or 0.0}}
    groups = get_default_optimizer_params(model, **decays, overrides=exempt)
    adam: Any = _with_clipping(cfg, torch.optim.AdamW)
    options = {"betas": tuple(solver.ADAM_BETAS), "eps": solver.ADAM_EPSILON, "fused": True}
    return adam(groups, lr=solver.BASE_LR, **options)


def _with_clipping(cfg: CfgNode, optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return the optimizer class, with the gradient clipping of SOLVER.CLIP_GRADIENTS before each step."""
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if not (clipping.ENABLED and clipping.CLIP_TYPE == FULL_MODEL):
        return maybe_add_gradient_clipping(cfg, optimizer)

    class ClippingOptimizer(optimizer):  # type: ignore[valid-type, misc]
        """Clips the norm of all gradients together before each step."""

        def step(self, closure: Any = None) -> Any:
            weights = [weight for group in self.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, clipping.CLIP_VALUE, norm_type=clipping.NORM_TYPE)
            return super().step(closure)

    return ClippingOptimizer
