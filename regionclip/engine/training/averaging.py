"""An exponential moving average of the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of the trainable parameters of a model; its frozen weights and buffers are as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start an average at the present weights.

        Args:
            model: what is trained.
            decay: weight of the old average at each step.
        """
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._update = get_ema_multi_avg_fn(decay)

    def restart(self) -> None:
        """Set the average to the present weights: after others were loaded."""
        self.load_state_dict(self.parameters)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        self._update(list(self.average.values()), list(self.parameters.values()), 1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run a block with the average in the model."""
        present = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.average, self.parameters)
        try:
            yield
        finally:
            _copy(present, self.parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by parameter name."""
        return self.average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state_dict` returned."""
        _copy(state, self.average)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
