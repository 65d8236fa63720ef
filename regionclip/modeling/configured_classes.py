"""Class embeddings that a config names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConfiguredClasses(nn.Module):
    """The classes of an embedding file, as a `Classifier`; they are no weights."""

    embeddings: Tensor
    """Unit vectors [K, D]."""

    def __init__(self, embeddings: Tensor, names: Sequence[str] = ()) -> None:
        """Store embeddings [K, D] and, if known, K names."""
        super().__init__()
        self.register_buffer("embeddings", F.normalize(embeddings, dim=1), persistent=False)
        self.names = tuple(names)

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return len(self.embeddings)

    def forward(self, unit_regions: Tensor) -> Tensor:
        """Return cosines [R, K] of unit region embeddings [R, D]."""
        return unit_regions @ self.embeddings.T
