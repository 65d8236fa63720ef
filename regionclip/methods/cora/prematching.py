"""Anchor pre-matching: one class for each anchor, which conditions its query (CORA, section 3.3)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.01
"""Divides cosines (MODEL.CLIP.CLSS_TEMP); the published system has it fixed, and not CLIP's learned one."""


@dataclass(frozen=True)
class NovelPrior:
    """Multiplies the probability of some classes before each anchor takes its most probable one."""

    classes: Tensor
    """bool [K]."""
    factor: float
    """MODEL.CORA.NOVEL_FACTOR; 1 changes nothing, the published value is 8."""

    def add_to(self, logits: Tensor) -> Tensor:
        """Return logits [..., K] with the prior added: multiplied probabilities are added logarithms."""
        return logits + self.classes.to(logits) * math.log(self.factor)


def match_classes(
    embeddings: Tensor, text: Tensor, prior: NovelPrior | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the most similar class of each anchor, int64 [N, Q].

    Args:
        embeddings: region embeddings of the anchors [N, Q, D].
        text: text embeddings of the classes [K, D].
        prior: of novel classes, at inference.
        temperature: divides the cosines, before the prior is added.
    """
    cosines = F.normalize(embeddings, dim=-1) @ F.normalize(text, dim=-1).T
    logits = cosines / temperature
    return (logits if prior is None else prior.add_to(logits)).argmax(dim=-1)


def match_halves(embeddings: Tensor, text: Tensor, in_second_half: Tensor) -> Tensor:
    """Return the most similar class of each anchor within each half of the classes, int64 [2 N, Q]: class splitting.

    The classes of the other half have cosine 0, as published.

    Args:
        embeddings: region embeddings of the anchors [N, Q, D].
        text: text embeddings of the classes [K, D].
        in_second_half: bool [K].
    """
    halves = [match_classes(embeddings, text * keep[:, None].to(text)) for keep in (~in_second_half, in_second_half)]
    return torch.cat(halves)


def draw_split(iteration: int, probability: float) -> bool:
    """Return whether classes are split in an iteration of training: the same in all processes.

    The published draw depends on the iteration within the epoch; here the iteration counts from the start of training.
    """
    return random.Random(iteration).random() < probability
