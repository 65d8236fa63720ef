"""What a resumed run needs to go on as if nothing had happened."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from regionclip.engine.training.writers import PERIOD
from regionclip.randomness import derived_seed, random_states, restore_random_states

logger = logging.getLogger(__name__)


def gather_random_states(states: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the random states of all processes; called by all, None takes the present one of this process."""
    return comm.all_gather(states or random_states())


def restore_random_state_of_process(states: list[dict[str, Any]], seed: int, iteration: int) -> None:
    """Set the state of this process; one that did not take part before is seeded anew."""
    if len(states) != comm.get_world_size():
        text = "The run had %d processes and now has %d: it goes on, but not bit by bit"
        logger.warning(text, len(states), comm.get_world_size())
    if comm.get_rank() < len(states):
        restore_random_states(states[comm.get_rank()])
    else:
        torch.manual_seed(derived_seed(seed, iteration, comm.get_rank()))


def recent_figures(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """Return what the medians of the coming log lines are made of, by figure."""
    hints = storage.smoothing_hints()
    return {
        name: {"values": list(history.values()[-PERIOD:]), "smooth": hints[name]}
        for name, history in storage.histories().items()
    }


def restore_figures(storage: EventStorage, figures: dict[str, dict[str, Any]]) -> None:
    """Put back what `recent_figures` returned."""
    for name, figure in figures.items():
        for value, iteration in figure["values"]:
            storage.put_scalar(name, value, smoothing_hint=figure["smooth"], cur_iter=int(iteration))
