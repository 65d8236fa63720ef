"""Score decay of soft-NMS (Bodla et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SoftNMSMethod = Literal["hard", "linear", "gaussian"]

METHODS: tuple[SoftNMSMethod, ...] = ("hard", "linear", "gaussian")


@dataclass(frozen=True)
class SoftNMSRule:
    """A decay method and its parameters; fields as the arguments of `soft_nms`."""

    method: SoftNMSMethod
    sigma: float
    iou_threshold: float
    prune_threshold: float

    def factors(self, iou: Tensor) -> Tensor:
        """Return the score factors [N] for the IoU [N] with the box just emitted."""
        return _FACTORS[self.method](iou, self)


_FACTORS: dict[SoftNMSMethod, Callable[[Tensor, SoftNMSRule], Tensor]] = {
    "gaussian": lambda iou, rule: torch.exp(-(iou**2) / rule.sigma),
    "linear": lambda iou, rule: torch.where(iou > rule.iou_threshold, 1 - iou, torch.ones_like(iou)),
    "hard": lambda iou, rule: (iou < rule.iou_threshold).to(iou.dtype),
}
