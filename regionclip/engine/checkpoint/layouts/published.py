"""All key layouts and weight slots: the shared ones, and those of the methods."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from torch import Tensor

from regionclip.engine.checkpoint.layouts.clip import CLIP, TINY_CLIP, VIT_CLIP
from regionclip.engine.checkpoint.layouts.imagenet import IMAGENET
from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
from regionclip.engine.checkpoint.layouts.mmdetection import PUBLISHED_OLN
from regionclip.engine.checkpoint.layouts.rpn import RPN
from regionclip.method import methods


@cache
def layouts() -> tuple[Layout, ...]:
    """Return all layouts; the first that recognizes a file applies, and the last recognizes every file."""
    of_methods = [layout for method in methods() for layout in import_module(method.checkpoints).LAYOUTS]
    return VIT_CLIP, IMAGENET, TINY_CLIP, PUBLISHED_OLN, *of_methods, CLIP


@cache
def weight_slots() -> tuple[WeightSlot, ...]:
    """Return all slots, in the order in which their files are loaded."""
    return RPN, *(slot for method in methods() for slot in import_module(method.checkpoints).SLOTS)


def without_weight_files() -> tuple[str, ...]:
    """Return the overrides of a config whose weights are all in one file."""
    return tuple(part for slot in weight_slots() for part in (slot.key, ""))


def rename_for_model(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a MODEL.WEIGHTS file under the keys of the model.

    Raises:
        UserError: the file is a CLIP with a transformer image encoder.
    """
    layout = next(layout for layout in layouts() if layout.recognizes(state, model_state))
    return layout.rename(path, state, model_state)
