"""Sums over processes: all-gather of rows with exact gradients, and mean counts."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Forward: all rows, in rank order. Backward: the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = comm.all_gather(len(rows))
        ctx.begin, ctx.count = sum(counts[: comm.get_rank()]), len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        everywhere = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everywhere, padded)
        return torch.cat([part[:count] for part, count in zip(everywhere, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows [N, ...] of all processes, concatenated in rank order: [sum N, ...].

    If every process computes the same loss of the result, the mean of the gradients over processes
    is the gradient of that loss. Upstream's `gather_tensors` truncates all processes to the smallest
    number of rows instead.
    """
    return rows if comm.get_world_size() == 1 else cast(Tensor, _GatherRows.apply(rows))  # type: ignore[no-untyped-call]


def mean_over_processes(count: int, device: torch.device) -> float:
    """Return the mean of a count over all processes, at least 1: divided by it, a mean loss is that of one process."""
    total = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    return max(float(total) / comm.get_world_size(), 1.0)
