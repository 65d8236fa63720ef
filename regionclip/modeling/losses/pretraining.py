"""Losses of region-text pretraining and distillation, as functions of embeddings and probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def image_text_loss(images: Tensor, texts: Tensor, temperature: float | Tensor) -> Tensor:
    """Return CLIP's symmetric cross entropy of matching pairs.

    Args:
        images: float [N, D], one per text, not normalized.
        texts: float [N, D], not normalized.
        temperature: divides the cosines.
    """
    return _symmetric_cross_entropy(unit_rows(images) @ unit_rows(texts).T / temperature)


def image_text_loss_by_subject(
    images: Tensor, texts: Tensor, subjects: Tensor, text_subjects: Tensor, temperature: float | Tensor
) -> Tensor:
    """Return CLIP's symmetric cross entropy, where texts about the subject of an image are no negatives of it.

    Args:
        images: float [N, D], not normalized.
        texts: float [N + M, D], not normalized: those of the images, then M further negatives.
        subjects: int64 [N], equal for images of the same subject.
        text_subjects: int64 [N + M].
        temperature: divides the cosines.
    """
    logits = unit_rows(images) @ unit_rows(texts).T / temperature  # [N, N + M]
    same = (subjects[:, None] == text_subjects).fill_diagonal_(False)
    return _symmetric_cross_entropy(logits.masked_fill(same, float("-inf")))


def _symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """Return the mean of both directions for logits [N, N + M] whose diagonal has the matching pairs."""
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits[:, : len(logits)].T, pairs)) / 2


def distillation_sum(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum over regions of KL(teacher || softmax(logits)), both [R, C]."""
    return F.kl_div(F.log_softmax(logits, dim=1), teacher, reduction="sum")


def embedding_distillation(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute difference of unit region embeddings and a teacher's, as in ViLD.

    Args:
        embeddings: float [R, D], not normalized.
        targets: float [R, D], used as they are.

    Returns:
        Mean over regions and dimensions; zero without regions.
    """
    if not len(embeddings):
        return embeddings.sum() * 0.0
    return F.l1_loss(F.normalize(embeddings, dim=1), targets.to(embeddings.dtype))


def mil_cross_entropy(
    logits: Tensor, positives: Tensor, weights: Tensor | None = None, *, average_positives: bool = False
) -> Tensor:
    """Return the cross entropy of each row with several positives.

    Args:
        logits: float [N, M].
        positives: [N, M], 1 where a column is a positive of the row, else 0.
        weights: float [N], row weights.
        average_positives: take the mean instead of the sum of the positives' probabilities.

    Returns:
        float [N]: negative log of the total probability of the positives.
    """
    log_positive = torch.logsumexp(F.log_softmax(logits, dim=-1) + positives.log(), dim=-1)
    if average_positives:
        log_positive = log_positive - (positives.sum(dim=-1) + 1e-6).log()
    return -log_positive if weights is None else -log_positive * weights


def unit_rows(rows: Tensor) -> Tensor:
    """L2-normalize rows [N, D]."""
    return rows / rows.norm(dim=-1, keepdim=True)
