"""Exponential moving average (EMA) of the trainable weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """EMA of the trainable parameters of a model; frozen weights and buffers are not averaged."""

    def __init__(self, model: nn.Module, decay: float, *, warms_up: bool = False) -> None:
        """Initialize the average with the current weights.

        Args:
            model: the model in training.
            decay: weight of the old average at each step.
            warms_up: let the decay grow with the iteration t as (1 + t) / (10 + t), up to `decay`, so that a short run
                is not an average of initial weights (MODEL_EMA.WARMUP).
        """
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.decay, self.warms_up = decay, warms_up

    def restart(self) -> None:
        """Reset the average to the current weights, after loading others."""
        self.load_state_dict(self.parameters)

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Update the average with the weights after an iteration, counted from 0."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration)) if self.warms_up else self.decay
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self.parameters.values()), 1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run a block with the averaged weights in the model."""
        present = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.average, self.parameters)
        try:
            yield
        finally:
            _copy(present, self.parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return self.average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        _copy(state, self.average)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
