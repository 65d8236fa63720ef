"""Checkpoints of LP-OVOD: the published keys, which are MMDetection's, and region encoders of other files."""

from __future__ import annotations

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
from regionclip.engine.checkpoint.layouts.mmdetection import (
    ENSEMBLE,
    Substitution,
    is_published_ensemble,
    published_ensemble,
    rename_published,
)

PUBLISHED: tuple[Substitution, ...] = (
    *ENSEMBLE,
    (r"^roi_heads\.box_predictor\.prototypes$", "roi_head.prototype"),
    (r"^roi_heads\.box_predictor\.novel_prototypes$", "roi_head.prototype_novel"),
)
"""Our keys, and those of the published files."""


def published_state(state: State) -> dict[str, Tensor]:
    """Return the weights of a detector under the published keys; those of an offline proposal network are left out."""
    return published_ensemble(state, PUBLISHED)


def _is_published(state: State, model_state: State) -> bool:
    """Return whether a file has a detector, or the backbone of one, for a model of this method."""
    return "roi_heads.box_predictor.prototypes" in model_state and is_published_ensemble(state, model_state)


LAYOUTS = (
    Layout("LP-OVOD", _is_published, lambda path, state, model_state: rename_published(state, model_state, PUBLISHED)),
)

SLOTS: tuple[WeightSlot, ...] = ()
