"""Losses of the classification branch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from regionclip.modeling.gathering import mean_over_processes

ClassificationLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [R, K + 1] (background last) and labels int64 [R] in [0, K] to a scalar."""


def build_classification_loss(focal_exponent: float | None, background_weight: float | None) -> ClassificationLoss:
    """Return the loss that FOCAL_SCALED_LOSS and BG_CLS_LOSS_WEIGHT describe."""
    weight = 1.0 if background_weight is None else background_weight
    if focal_exponent is None:
        return partial(weighted_cross_entropy, background_weight=weight)
    return partial(focal_scaled_loss, exponent=focal_exponent, background_weight=weight)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, *, background_weight: float) -> Tensor:
    """Return the weighted mean cross entropy, as `F.cross_entropy` with class weights; zero without weights."""
    if not len(labels):
        return logits.sum() * 0.0
    if background_weight == 0 and bool((labels == logits.shape[1] - 1).all()):
        return logits.sum() * 0.0  # a mean of weights 0
    weights = logits.new_ones(logits.shape[1])
    weights[-1] = background_weight
    return F.cross_entropy(logits, labels, weight=weights)


def focal_scaled_loss(logits: Tensor, labels: Tensor, *, exponent: float, background_weight: float) -> Tensor:
    """Return the cross entropy scaled by (1 - p)^exponent, averaged over regions; zero for an empty batch.

    Gradients flow through the factor, as upstream.
    """
    if not len(labels):
        return logits.sum() * 0.0
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    # 1 - p from the cross entropy, accurate near p = 1; the minimum keeps the gradient of its power finite there.
    remainder = (-torch.expm1(-cross_entropy)).clamp_min(1e-12)
    background = labels == logits.shape[1] - 1
    weights = torch.where(background, background_weight, 1.0)
    return (cross_entropy * remainder**exponent * weights).mean()


def sigmoid_focal(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal loss (Lin et al., 2017), summed over regions and classes, divided by the number of positives.

    In several processes that is the mean number, so that their mean loss is that of one process with all regions.

    Args:
        logits: float [R, K].
        labels: int64 [R] in [0, K]; K is background, which has no positive class.
        alpha: weight of positive terms; that of negative ones is 1 - alpha.
        gamma: focal exponent.
    """
    classes = logits.shape[1]
    targets = F.one_hot(labels, classes + 1)[:, :classes].to(logits.dtype)
    positives = mean_over_processes(int((labels < classes).sum()), logits.device)
    return sigmoid_focal_loss(logits, targets, alpha, gamma, reduction="sum") / positives
