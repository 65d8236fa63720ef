"""Classifier of a vocabulary and of background class names."""

from __future__ import annotations

import torch
from torch import Tensor

from regionclip.clip.vocabulary import Classifier, Vocabulary


class BackgroundClassifier:
    """Compares regions with the classes of a vocabulary, and with background classes.

    `names` and `embeddings` [K, D] are those of the vocabulary; embeddings are unit vectors, the mean of synonyms.
    """

    def __init__(self, vocabulary: Vocabulary, background: Vocabulary | None, device: torch.device | str) -> None:
        """Create a classifier on a device; `background` has the classes that are never reported."""
        parts = [vocabulary] if background is None else [vocabulary, background]
        self._parts = [Classifier(part, device) for part in parts]
        self.classes = len(vocabulary)
        self.names = vocabulary.names
        self.embeddings = vocabulary.class_embeddings().to(device)

    def __call__(self, unit_regions: Tensor) -> Tensor:
        """Return the cosines [R, K + B] of unit region embeddings [R, D], background classes last."""
        return torch.cat([classify(unit_regions) for classify in self._parts], dim=1)
