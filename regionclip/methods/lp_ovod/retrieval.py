"""Retrieval of the regions most similar to class names, among the stored regions of many images (section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.data.region_features.formats import Features

ROWS_AT_ONCE = 65536
"""Regions that are compared at once; the result does not depend on it."""


@dataclass(frozen=True)
class Retrieved:
    """The regions of a class, the most similar first."""

    rows: Tensor
    """int64 [N], positions among all regions."""
    cosines: Tensor
    """float64 [N]."""


@dataclass
class TopRegions:
    """The most similar regions of each class so far."""

    text: Tensor
    """Unit class embeddings [K, D]."""
    count: int
    """Regions to keep of each class."""
    _best: list[Retrieved] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with no region."""
        self.text = F.normalize(self.text.double(), dim=1)
        none = torch.zeros(0, dtype=torch.int64)
        self._best = [Retrieved(none, torch.zeros(0, dtype=torch.float64)) for _ in range(len(self.text))]

    def add(self, embeddings: Tensor, rows: Tensor) -> None:
        """Compare regions, whose rows are higher than all before.

        Args:
            embeddings: float [R, D], not normalized.
            rows: int64 [R], ascending.
        """
        for part, part_rows in zip(embeddings.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True):
            unit = F.normalize(part.to(self.text), dim=1)
            # In float64 and rounded, so that equal embeddings have equal cosines in chunks of any size.
            cosines = (self.text @ unit.T).cpu().round(decimals=9)  # [K, R]
            self._best = [
                self._merged(best, row, part_rows.cpu()) for best, row in zip(self._best, cosines, strict=True)
            ]

    def _merged(self, best: Retrieved, cosines: Tensor, rows: Tensor) -> Retrieved:
        """Keep the highest cosines; of equal ones the lower rows, so that chunks make no difference."""
        if len(best.cosines) == self.count:
            chosen = (cosines > best.cosines[-1]).nonzero()[:, 0]
        elif len(cosines) > self.count:
            chosen = (cosines >= cosines.topk(self.count).values[-1]).nonzero()[:, 0]
        else:
            chosen = torch.arange(len(cosines))
        cosines, rows = torch.cat([best.cosines, cosines[chosen]]), torch.cat([best.rows, rows[chosen]])
        order = cosines.argsort(descending=True, stable=True)[: self.count]
        return Retrieved(rows[order], cosines[order])

    @property
    def best(self) -> list[Retrieved]:
        """The regions of each class."""
        return self._best


def retrieve(
    features: Iterable[Features], text: Tensor, count: int, threshold: float, min_cosine: float = -1.0
) -> list[Retrieved]:
    """Return for each class the regions with the highest cosine.

    Neither suppression nor an exclusive choice among classes is applied, as published. Rows count all regions of all
    images, also those below the threshold.

    Args:
        features: of images in order, with `feats` [R, D] and, unless the threshold is 0, `objectness` [R].
        text: class embeddings [K, D].
        count: regions of each class; fewer if there are not as many.
        threshold: minimum objectness; equal values count.
        min_cosine: minimum cosine.
    """
    top = TopRegions(text, count)
    for embeddings, rows in _blocks(features, threshold):
        top.add(embeddings, rows)
    return [_above(best, min_cosine) for best in top.best]


def _above(best: Retrieved, min_cosine: float) -> Retrieved:
    kept = best.cosines >= min_cosine
    return Retrieved(best.rows[kept], best.cosines[kept])


def _blocks(features: Iterable[Features], threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield embeddings and rows of enough images for one comparison."""
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    first = size = 0
    for image in features:
        embeddings = image["feats"]
        rows = torch.arange(first, first + len(embeddings))
        first += len(embeddings)
        if threshold > 0:
            # As stored: a value of float32 0.6 reaches a threshold of 0.6.
            kept = image["objectness"] >= torch.tensor(threshold, dtype=image["objectness"].dtype)
            embeddings, rows = embeddings[kept], rows[kept]
        parts.append(embeddings)
        numbers.append(rows)
        size += len(rows)
        if size >= ROWS_AT_ONCE:
            yield torch.cat(parts), torch.cat(numbers)
            parts, numbers, size = [], [], 0
    if size:
        yield torch.cat(parts), torch.cat(numbers)


def image_and_offset(rows: Sequence[int] | Tensor, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each row among the regions of all images the image, by its place, and the region in it.

    Args:
        rows: N positions.
        counts: regions of each image.
    """
    ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
    wanted = torch.as_tensor(rows, dtype=torch.int64)
    images = torch.searchsorted(ends, wanted, right=True)
    offsets = wanted - (ends - torch.tensor(counts, dtype=torch.int64))[images]
    return list(zip(images.tolist(), offsets.tolist(), strict=True))
