"""ImageNet backbones of Detectron2's model zoo."""

from __future__ import annotations

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import Layout, State

_IMAGENET_STEM = ("stem.conv1.weight", "conv1_w", "stem.conv1.norm.weight")


def _align(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    # Caffe2 names have underscores, which Detectron2's own converter handles.
    is_caffe2 = "conv1_w" in state
    own = {key: value for key, value in model_state.items() if not key.startswith("offline_")}
    return dict(align_and_update_state_dicts(own, dict(state), c2_conversion=is_caffe2))


IMAGENET = Layout("ImageNet backbone", lambda state, model_state: any(key in state for key in _IMAGENET_STEM), _align)
