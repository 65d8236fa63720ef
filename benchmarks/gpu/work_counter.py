"""FLOPs and memory traffic of a computation, counted operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class _TrafficCounter(TorchDispatchMode):
    """Sums the bytes of the tensors that operators read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count_work(job: Callable[[], Any]) -> dict[str, float]:
    """Return the `TFLOP` of matrix products and convolutions of one call, and the `GB` that its operators access."""
    traffic = _TrafficCounter()
    with FlopCounterMode(display=False) as operations, traffic:
        job()
    return {"TFLOP": operations.get_total_flops() / 1e12, "GB": traffic.bytes / 1e9}
