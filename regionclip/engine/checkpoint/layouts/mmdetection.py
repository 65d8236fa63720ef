"""Keys of MMDetection 2 for the parts of a Faster R-CNN, its OLN, and detectors with two box heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import Layout, State

Substitution = tuple[str, str | Callable[[re.Match[str]], str]]
"""Regular expression of one of our keys, and what it is there."""


def _level(name: str) -> Substitution:
    """Return the substitution of FPN convolutions: Detectron2 counts levels from 2."""
    ours, theirs = f"fpn_{name}", {"lateral": "lateral_convs", "output": "fpn_convs"}[name]
    return rf"^backbone\.{ours}(\d)\.", lambda found: f"neck.{theirs}.{int(found[1]) - 2}.conv."


BACKBONE: tuple[Substitution, ...] = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda found: f"backbone.layer{int(found[1]) - 1}."),
    _level("lateral"),
    _level("output"),
    (r"^(backbone\.layer.*)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(backbone\.layer.*)\.shortcut\.", r"\1.downsample.0."),
    (r"^(backbone\.layer.*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"\.conv\.norm\.", ".bn."),
)
"""ResNet and FPN."""

OLN: tuple[Substitution, ...] = (
    *BACKBONE,
    (r"^proposal_generator\.rpn\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposal_generator\.rpn\.rpn_head\.objectness_logits\.", "rpn_head.rpn_obj."),
    (r"^proposal_generator\.rpn\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    (r"^proposal_generator\.box\.head\.fc1\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^proposal_generator\.box\.head\.fc2\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^proposal_generator\.box\.predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^proposal_generator\.box\.predictor\.iou_score\.", "roi_head.bbox_head.fc_bbox_score."),
)


def _number_below(found: str) -> str:
    return str(int(found) - 1)


def _head_norm(suffix: str, number: str) -> str:
    return f"roi_head.bbox_head.shared_convs{suffix}.{_number_below(number)}.bn."


ENSEMBLE: tuple[Substitution, ...] = (
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
    (r"^roi_heads\.distill_projection\.", "roi_head.projection_for_image."),
    (
        r"^roi_heads\.mask_head\.mask_fcn(\d)\.norm\.",
        lambda found: f"roi_head.mask_head.convs.{_number_below(found[1])}.bn.",
    ),
    (
        r"^roi_heads\.mask_head\.mask_fcn(\d)\.",
        lambda found: f"roi_head.mask_head.convs.{_number_below(found[1])}.conv.",
    ),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_head.mask_head.conv_logits."),
)
"""ResNet, FPN, RPN, two box heads and a mask head (ViLD-ensemble)."""

_UNUSED_BY_OLN = re.compile(r"^(rpn_head\.rpn_cls|roi_head\.bbox_head\.fc_cls)\.")
"""Classifiers that were not trained: their losses had weight 0."""

_DISTANCES = "rpn_head.rpn_reg."
_FROM_PUBLISHED, _TO_PUBLISHED = [2, 0, 3, 1], [1, 3, 0, 2]
"""Rows of distances: published top, bottom, left, right; ours left, top, right, bottom."""


def published_key(key: str, substitutions: Sequence[Substitution]) -> str:
    """Return what one of our keys is in a published file."""
    for pattern, replacement in substitutions:
        key = re.sub(pattern, replacement, key)
    return key


def rename_published(state: State, model_state: State, substitutions: Sequence[Substitution]) -> dict[str, Tensor]:
    """Return the weights of a published file under the keys of a model; others keep their keys."""
    ours = {published_key(key, substitutions): key for key in model_state}
    return {ours.get(key, key): value for key, value in state.items()}


def is_published_ensemble(state: State, model_state: State) -> bool:
    """Return whether a file has a detector with two heads, or the backbone of one, for a model that has them."""
    is_ours = "roi_heads.distill_projection.weight" in model_state
    is_imagenet = "backbone.bottom_up.stem.conv1.weight" in model_state  # CLIP's ResNet has such keys too
    return is_ours and is_imagenet and any(key.startswith(("backbone.layer1.", "roi_head.")) for key in state)


def published_ensemble(state: State, substitutions: Sequence[Substitution]) -> dict[str, Tensor]:
    """Return the weights of a detector under published keys; anchors, an offline RPN and RAF are left out."""
    kept = {key: value for key, value in state.items() if not key.startswith(("offline_", "raf."))}
    renamed = {published_key(key, substitutions): value for key, value in kept.items()}
    return {key: value for key, value in renamed.items() if not key.startswith("proposal_generator.")}


def _rename_oln(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    kept = {
        key: value[_FROM_PUBLISHED] if key.startswith(_DISTANCES) else value
        for key, value in state.items()
        if not _UNUSED_BY_OLN.match(key)
    }
    return rename_published(kept, model_state, OLN)


def published_oln(state: State) -> dict[str, Tensor]:
    """Return the weights of our OLN under the published keys, without the unused classifiers."""
    renamed = {published_key(key, OLN): value for key, value in state.items()}
    return {
        key: value[_TO_PUBLISHED] if key.startswith(_DISTANCES) else value
        for key, value in renamed.items()
        if not key.startswith("proposal_generator.")  # anchors
    }


PUBLISHED_OLN = Layout("OLN", lambda state, model_state: "rpn_head.rpn_obj.weight" in state, _rename_oln)
