"""State that a resumed run needs to continue identically."""

from __future__ import annotations

import logging
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from regionclip.engine.training.writers import PERIOD
from regionclip.errors import user_error
from regionclip.randomness import derived_seed, random_states, restore_random_states

logger = logging.getLogger(__name__)


def require_agreement(newest: Path | None) -> None:
    """Raise `UserError` unless all processes see the same newest checkpoint."""
    found = comm.all_gather(newest.name if newest else "no checkpoint")
    if len(set(found)) > 1:
        actual = ", ".join(f"{name} in process {rank}" for rank, name in enumerate(found))
        fix = "use a folder that all machines share"
        raise user_error("OUTPUT_DIR", "the same checkpoint for all processes", actual, fix)


def gather_random_states(states: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the random states of all processes; called by all, None takes this process's current state."""
    return comm.all_gather(states or random_states())


def restore_random_state_of_process(states: list[dict[str, Any]], seed: int, iteration: int) -> None:
    """Set the random state of this process; a process without a saved state is seeded again."""
    if len(states) != comm.get_world_size():
        text = "The run had %d processes and now has %d: it goes on, but not bit by bit"
        logger.warning(text, len(states), comm.get_world_size())
    if comm.get_rank() < len(states):
        restore_random_states(states[comm.get_rank()])
    else:
        torch.manual_seed(derived_seed(seed, iteration, comm.get_rank()))


def best_of(cfg: CfgNode) -> list[str]:
    """Return what the best value of a run is of: the metric, and the test sets."""
    return [cfg.SOLVER.BEST_CHECKPOINT_METRIC, *cfg.DATASETS.TEST]


def best_value_of(run: dict[str, Any], cfg: CfgNode) -> float:
    """Return the best value in the state of a run; minus infinity if it is one of something else."""
    if run.get("best_of", best_of(cfg)) == best_of(cfg):
        return float(run["best_value"])
    logger.warning("The best weights so far were those by %s: the search starts again", ", ".join(run["best_of"]))
    return -math.inf


def warn_of_changes(run: dict[str, Any], cfg: CfgNode) -> None:
    """Log what a resumed run does not take from its config, or takes otherwise than before."""
    if run["images_per_batch"] != cfg.SOLVER.IMS_PER_BATCH:
        logger.warning("IMS_PER_BATCH was %d: other batches from now on", run["images_per_batch"])
    started = run.get("initial_weights", cfg.MODEL.WEIGHTS)
    if started != cfg.MODEL.WEIGHTS:
        text = "The run in %s started from %s: MODEL.WEIGHTS %s is not read; for it, start in another OUTPUT_DIR"
        logger.warning(text, cfg.OUTPUT_DIR, started or "no weights", cfg.MODEL.WEIGHTS or "(none)")


def recent_metrics(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """Return the recent values that the medians of the next log lines need, by metric."""
    hints = storage.smoothing_hints()
    return {
        name: {"values": _of_last_steps(history.values()), "smooth": hints[name]}
        for name, history in storage.histories().items()
    }


def _of_last_steps(values: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the end of a history of (value, step): a step whose batch is computed in parts has several values."""
    kept = takewhile(lambda pair: pair[1] > values[-1][1] - PERIOD, reversed(values))
    return list(kept)[::-1]


def restore_metrics(storage: EventStorage, metrics: dict[str, dict[str, Any]]) -> None:
    """Restore what `recent_metrics` returned."""
    for name, metric in metrics.items():
        for value, iteration in metric["values"]:
            storage.put_scalar(name, value, smoothing_hint=metric["smooth"], cur_iter=int(iteration))


class StepStart:
    """State that a step changes before its loss is known: random states, and statistics of trained norms."""

    def __init__(self, model: nn.Module) -> None:
        """Save that state."""
        self.random_states = random_states()
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self._statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def restore_norms(self) -> None:
        """Restore the statistics of norms."""
        for buffer, value in self._statistics:
            buffer.copy_(value)


SETTINGS = {"weight_decay", "momentum", "nesterov", "betas", "eps"}
"""Optimizer options set by the config, besides the learning rate."""


def load_optimizer(optimizer: Optimizer, scheduler: Any, state: dict[str, Any], max_iterations: int) -> None:
    """Load the optimizer state of a checkpoint, but keep learning rates of the config that have changed since.

    Args:
        optimizer: as configured.
        scheduler: with the state of the checkpoint.
        state: `state_dict` of the optimizer that wrote the checkpoint.
        max_iterations: after which the schedule has no rate.

    Raises:
        UserError: the checkpoint has another kind of optimizer, or one of other groups of parameters.
    """
    configured = [dict(group) for group in optimizer.param_groups]
    told, wants = (groups[0].keys() & SETTINGS for groups in (state["param_groups"], configured))
    if told != wants:
        expected, fix = f"the optimizer of the run, told {sorted(told)}", "resume with it, or start again"
        raise user_error("SOLVER.OPTIMIZER", expected, f"one that is told {sorted(wants)}", fix)
    sizes = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], configured)]
    if sizes[0] != sizes[1]:
        actual, fix = f"groups of {sizes[1]} parameters", "resume with the version and the config of the run"
        raise user_error("--resume", f"an optimizer with groups of {sizes[0]} parameters", actual, fix)
    optimizer.load_state_dict(state)
    for i, (group, wanted) in enumerate(zip(optimizer.param_groups, configured, strict=True)):
        base, rate = group.get("initial_lr", group["lr"]), wanted["initial_lr"]
        if base != rate:
            logger.warning("The base learning rate was %g and is %g from now on", base, rate)
            group["lr"] *= rate / base if base else 1.0
            group["initial_lr"] = scheduler.base_lrs[i] = rate
        for name in wants:
            group[name] = wanted[name]
    if scheduler.last_epoch < max_iterations:  # the schedule may be another one since
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
