"""Weight slots of RALF: the augmenter of RAF, and its CLIP on crops."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor

from regionclip.engine.checkpoint.layouts.clip import CLIP
from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
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


LAYOUTS: tuple[Layout, ...] = ()

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
