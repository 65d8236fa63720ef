"""Vocabulary sampling and retrieval of negative words (RALF, section 3.1), on cosines of classes and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regionclip.modeling.retrieval_augmentation.negatives import NO_WORD


def argsort_variance(cosines: Tensor) -> Tensor:
    """Return what the published code takes for the rank variance of words, float64 [V].

    Its columns are places of the sorted list and not words: the variance of which word is at a place.

    Args:
        cosines: float [C, V], of classes and words.
    """
    return cosines.argsort(dim=1, stable=True).double().var(dim=0)


def rank_variance(cosines: Tensor) -> Tensor:
    """Return the variance over classes of the rank of each word, float64 [V], as the paper describes it.

    Args:
        cosines: float [C, V], of classes and words; the least similar word has rank 0.
    """
    return cosines.argsort(dim=1, stable=True).argsort(dim=1).double().var(dim=0)


VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {"argsort": argsort_variance, "rank": rank_variance}
"""Values of --variance."""


def sample_words(variance: Tensor, threshold: float) -> Tensor:
    """Return the rows of words, int64 ascending, whose variance is at least the threshold."""
    return (variance >= threshold).nonzero()[:, 0]


@dataclass(frozen=True)
class Retrieved:
    """Words that are retrieved for each class on one side."""

    rows: Tensor
    """Int32 [C, M], valid rows first; `NO_WORD` after the last."""
    hubs: Tensor
    """Int64, rows of words that are on too many lists and removed from all."""
    counts: Tensor
    """Int64 [V], on how many lists each word was."""


def retrieve_words(cosines: Tensor, count: int, hub_classes: int, *, largest: bool) -> Retrieved:
    """Return the most, or least, similar words of each class, without hubs.

    Args:
        cosines: float [C, V], of classes and words.
        count: number M of words of each class, before hubs are removed.
        hub_classes: a word on the lists of at least that many classes is removed from all lists.
        largest: the most similar, hard ones; else the least similar, easy ones.
    """
    rows = cosines.topk(min(count, cosines.shape[1]), dim=1, largest=largest).indices  # [C, M]
    counts = rows.flatten().bincount(minlength=cosines.shape[1])
    is_hub = counts >= hub_classes
    kept = ~is_hub[rows]
    # Stable: valid rows first, in their order.
    order = (~kept).int().argsort(dim=1, stable=True)
    longest = max(int(kept.sum(dim=1).max()), 1) if len(rows) else 1
    found = torch.where(kept, rows, NO_WORD).gather(1, order)[:, :longest]
    return Retrieved(found.int(), is_hub.nonzero()[:, 0], counts)
