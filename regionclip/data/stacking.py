"""Batches in transfer between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from regionclip.records import MappedImage


@dataclass
class StackedBatch:
    """A batch whose tensors of equal shape are stacked: each transferred tensor costs a shared-memory file."""

    rest: list[dict[str, Any]]
    """For each record, the values that are not stacked."""
    tensors: dict[str, Tensor]
    """[N, ...] by key."""

    @classmethod
    def of(cls, records: list[MappedImage]) -> StackedBatch:
        """Stack tensors that have the same shape and dtype in all records."""
        first = {key: value for key, value in records[0].items() if isinstance(value, Tensor)}
        like = [key for key, value in first.items() if all(_is_like(record.get(key), value) for record in records)]
        rest = [{key: value for key, value in record.items() if key not in like} for record in records]
        return cls(rest, {key: torch.stack([cast(Tensor, record.get(key)) for record in records]) for key in like})

    def records(self) -> list[MappedImage]:
        """Return the original records."""
        rows = ({key: tensor[i] for key, tensor in self.tensors.items()} for i in range(len(self.rest)))
        return [cast(MappedImage, record | row) for record, row in zip(self.rest, rows, strict=True)]


def _is_like(value: object, other: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == other.shape and value.dtype == other.dtype
