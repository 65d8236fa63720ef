"""Checkpoints of RALF: DetPro's published keys, which are MMDetection's; the augmenter, and the CLIP on crops."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor

from regionclip.engine.checkpoint.layouts.clip import CLIP
from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
from regionclip.engine.checkpoint.layouts.mmdetection import (
    ENSEMBLE,
    Substitution,
    is_published_ensemble,
    published_ensemble,
    rename_published,
)
from regionclip.errors import user_error

AUGMENTER, CROPS = "raf.augmenter.", "raf.clip."
"""Prefixes in a detector."""

_FIRST = "class_embedding"


def rename_augmenter(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of an augmenter, a bare published state dict, under the keys of a detector.

    Raises:
        UserError: the file holds no augmenter.
    """
    if _FIRST not in state:
        expected, actual = f"an augmenter, with {_FIRST}", f"keys such as {', '.join(sorted(state)[:3])}"
        raise user_error(f"MODEL.RALF.RAF.WEIGHTS {path}", expected, actual, "name a file of ralf train-augmenter")
    return {AUGMENTER + key: value for key, value in state.items()}


def rename_crop_clip(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a CLIP file under the keys of the CLIP on crops; a text encoder only if it has one."""
    own = {key.removeprefix(CROPS): value for key, value in model_state.items() if key.startswith(CROPS)}
    renamed = CLIP.rename(path, state, own)
    return {CROPS + key: value for key, value in renamed.items() if key in own or not key.startswith("lang_encoder.")}


def _uses_crops(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.RALF.RAF.ENABLED and cfg.MODEL.RALF.RAF.EMBEDDING == "crops")


PUBLISHED: tuple[Substitution, ...] = (
    *ENSEMBLE,
    (r"^roi_heads\.box_predictor\.projection\.", "roi_head.projection."),
    (r"^roi_heads\.box_predictor\.bg_embedding\.", "roi_head.bg_embedding."),
)
"""Keys of DetPro, and those of the published files."""

_TEACHER = "roi_head.clip_model."
"""Prefix of the frozen CLIP that published files have a copy of."""


def published_state(state: State) -> dict[str, Tensor]:
    """Return the weights of a DetPro detector under the published keys, without offline RPN, RAF and CLIP."""
    return published_ensemble(state, PUBLISHED)


def _is_published(state: State, model_state: State) -> bool:
    return "roi_heads.box_predictor.bg_embedding.weight" in model_state and is_published_ensemble(state, model_state)


def _rename_detpro(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    own = {key: value for key, value in state.items() if not key.startswith(_TEACHER)}
    return rename_published(own, model_state, PUBLISHED)


LAYOUTS = (Layout("DetPro", _is_published, _rename_detpro),)

SLOTS = (
    WeightSlot(
        "augmenter",
        "MODEL.RALF.RAF.WEIGHTS",
        AUGMENTER,
        rename_augmenter,
        is_used=lambda cfg: bool(cfg.MODEL.RALF.RAF.ENABLED),
    ),
    WeightSlot("crop_clip", "MODEL.RALF.RAF.CLIP_WEIGHTS", CROPS, rename_crop_clip, is_used=_uses_crops),
)
