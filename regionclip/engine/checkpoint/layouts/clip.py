"""CLIP and RegionCLIP checkpoints: the default layout."""

from __future__ import annotations

import re

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import BOOKKEEPING, Layout, State
from regionclip.errors import user_error

_TEXT_KEY = re.compile(r"(transformer\.|token_embedding\.|ln_final\.|positional_embedding$|text_projection$)")

_RESNET_KEY = re.compile(r"(teacher_)?(backbone|visual)\.(bottom_up\.)?layer1\.")


def _rename(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Rename the keys of CLIP or RegionCLIP.

    These are files of this project and of RegionCLIP (also with `offline_*`, `teacher_*` and text keys), OpenAI and
    open_clip checkpoints (`visual.*` and bare text keys), and `teacher_*_OAI_CLIP` files (`backbone.*`, bare text
    keys).
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        # A CLIP model in training has the bare keys itself.
        if key in model_state:
            renamed[key] = value
        elif not BOOKKEEPING.search(key):
            for target in _targets(key, model_state):
                renamed[target] = value
    return renamed


def _refuse_transformer(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    raise user_error(
        path,
        "a CLIP with a ResNet image encoder",
        "a CLIP with a transformer image encoder",
        "use RN50, RN101, RN50x4, RN50x16 or RN50x64",
    )


def _targets(key: str, model_state: State) -> list[str]:
    if key.startswith("visual."):
        return _image_encoder_targets(key.removeprefix("visual."), model_state)
    if _TEXT_KEY.match(key):
        return [f"lang_encoder.{key}"]
    if key.startswith("text.") and _TEXT_KEY.match(key.removeprefix("text.")):
        return [f"lang_encoder.{key.removeprefix('text.')}"]
    if key not in model_state and key.startswith("backbone."):
        # An image encoder without FPN, for a model that has an FPN on it.
        in_pyramid = key.replace("backbone.", "backbone.bottom_up.", 1)
        return [in_pyramid if in_pyramid in model_state else key]
    return [key]


def _image_encoder_targets(name: str, model_state: State) -> list[str]:
    # A bare CLIP file fills every CLIP image encoder of the model: the backbone, with or without FPN,
    # and the teacher of pretraining.
    candidates = [f"{prefix}.{name}" for prefix in ("backbone", "backbone.bottom_up", "teacher_backbone")]
    return [candidate for candidate in candidates if candidate in model_state] or candidates[:1]


CLIP = Layout("CLIP or RegionCLIP", lambda state, model_state: True, _rename)

_TINY_CLIP_PREFIX = re.compile(r"^_(image_encoder|text_encoder|logit_scale)\.(module\.)?")


def _rename_tiny_clip(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Rename the keys of TinyCLIP, which keeps image and text encoder in modules of their own, perhaps distributed."""
    return _rename(path, {_TINY_CLIP_PREFIX.sub("", key): value for key, value in state.items()}, model_state)


TINY_CLIP = Layout(
    "TinyCLIP",
    lambda state, model_state: any(key.startswith("_image_encoder.") for key in state),
    _rename_tiny_clip,
)


def _is_transformer_for_a_resnet(state: State, model_state: State) -> bool:
    is_transformer = any(key.startswith("visual.transformer.") for key in state)
    return is_transformer and any(_RESNET_KEY.match(key) for key in model_state)


VIT_CLIP = Layout("CLIP with a transformer image encoder", _is_transformer_for_a_resnet, _refuse_transformer)
