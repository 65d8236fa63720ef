"""Checkpoints of LP-OVOD: the published keys, which are MMDetection's, and region encoders of other files."""

from __future__ import annotations

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
from regionclip.engine.checkpoint.layouts.mmdetection import (
    BACKBONE,
    Substitution,
    published_key,
    rename_published,
)


def _number_below(found: str) -> str:
    return str(int(found) - 1)


PUBLISHED: tuple[Substitution, ...] = (
    (r"^roi_heads\.box_head\.conv(\d)\.norm\.", lambda found: _head_norm("", found[1])),
    (r"^roi_heads\.distill_box_head\.conv(\d)\.norm\.", lambda found: _head_norm("_for_image", found[1])),
    *BACKBONE,
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    (
        r"^roi_heads\.box_head\.conv(\d)\.",
        lambda found: f"roi_head.bbox_head.shared_convs.{_number_below(found[1])}.conv.",
    ),
    (
        r"^roi_heads\.distill_box_head\.conv(\d)\.",
        lambda found: f"roi_head.bbox_head.shared_convs_for_image.{_number_below(found[1])}.conv.",
    ),
    (r"^roi_heads\.box_head\.fc1\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^roi_heads\.distill_box_head\.fc1\.", "roi_head.bbox_head.shared_fcs_for_image.0."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.box_predictor\.prototypes$", "roi_head.prototype"),
    (r"^roi_heads\.box_predictor\.novel_prototypes$", "roi_head.prototype_novel"),
    (r"^roi_heads\.distill_projection\.", "roi_head.projection_for_image."),
)
"""Our keys, and those of the published files."""


def _head_norm(suffix: str, number: str) -> str:
    return f"roi_head.bbox_head.shared_convs{suffix}.{_number_below(number)}.bn."


def published_state(state: State) -> dict[str, Tensor]:
    """Return the weights of a detector under the published keys; those of an offline proposal network are left out."""
    renamed = {published_key(key, PUBLISHED): value for key, value in state.items() if not key.startswith("offline_")}
    return {key: value for key, value in renamed.items() if not key.startswith("proposal_generator.")}  # anchors


def _is_published(state: State, model_state: State) -> bool:
    """Return whether a file has a detector, or the backbone of one, for a model of this method."""
    is_ours = "roi_heads.distill_projection.weight" in model_state
    is_imagenet = "backbone.bottom_up.stem.conv1.weight" in model_state  # CLIP's ResNet has such keys too
    return is_ours and is_imagenet and any(key.startswith(("backbone.layer1.", "roi_head.")) for key in state)


LAYOUTS = (
    Layout("LP-OVOD", _is_published, lambda path, state, model_state: rename_published(state, model_state, PUBLISHED)),
)

SLOTS: tuple[WeightSlot, ...] = ()
