"""Published key layouts of checkpoints, and their renaming to the keys of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor
from torch.nn import functional as F

from regionclip.errors import user_error

State = Mapping[str, Tensor]

_TEXT_KEY = re.compile(r"(transformer\.|token_embedding\.|ln_final\.|positional_embedding$|text_projection$)")
_BOOKKEEPING = re.compile(
    r"(^|\.)(logit_scale|logit_bias|input_resolution|context_length|vocab_size|attn_mask|ignore_others|pixel_mean|pixel_std)$"
    r"|anchor_generator\.cell_anchors\."
)
"""Entries that are no detector weights: scalars of CLIP, constants of old Detectron2 files."""

_TEXT_ENCODER = "roi_heads.box_predictor.lang_encoder"
_DENSE_PREFIXES = (
    ("image_encoder.", "backbone."),
    ("visual.", "backbone."),
    ("norm.", "backbone.norm."),
    ("text_encoder.", f"{_TEXT_ENCODER}.lang_encoder."),
    ("lang_encoder.lang_encoder.", f"{_TEXT_ENCODER}.lang_encoder."),
    ("lang_encoder.", f"{_TEXT_ENCODER}.lang_encoder."),
    ("text.", f"{_TEXT_ENCODER}.lang_encoder."),
)
"""Key prefixes in the files of UniCL, K-LITE and FocalNet; the first match applies."""

_DENSE_NAMES = {
    "vision_projection": "image_projection",
    **dict.fromkeys(("text_projection", "lang_projection", "lang_encoder.lang_proj"), f"{_TEXT_ENCODER}.lang_proj"),
    **dict.fromkeys(("logit_scale", "lang_encoder.logit_scale"), f"{_TEXT_ENCODER}.logit_scale"),
}
"""Whole keys in the same files."""

_IMAGENET_STEM = ("stem.conv1.weight", "conv1_w", "stem.conv1.norm.weight")
_RPN_PARTS = {"backbone": "offline_backbone", "proposal_generator": "offline_proposal_generator"}


def rename_for_model(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a MODEL.WEIGHTS file under the keys of the model.

    Supported are files of this project and of RegionCLIP (also with `offline_*`, `teacher_*` and
    text keys), OpenAI and open_clip checkpoints (`visual.*` and bare text keys),
    `teacher_*_OAI_CLIP` files (`backbone.*`, bare text keys), and ImageNet backbones of
    Detectron2's model zoo. Keys that the model lacks are kept and reported later.

    Raises:
        UserError: the file is a CLIP with a transformer image encoder.
    """
    if any(key.startswith("visual.transformer.") for key in state):
        raise user_error(
            path,
            "a CLIP with a ResNet image encoder",
            "a CLIP with a transformer image encoder",
            "use RN50, RN101, RN50x4, RN50x16 or RN50x64",
        )
    if _is_imagenet_backbone(state):
        return _align_imagenet(state, model_state)
    if "image_projection" in model_state:
        return rename_for_transformer(state, model_state)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        # A CLIP model in training has the bare keys itself.
        if key in model_state:
            renamed[key] = value
        elif not _BOOKKEEPING.search(key):
            for target in _targets(key, model_state):
                renamed[target] = value
    return renamed


def rename_for_transformer(state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a UniCL-style file under the keys of a transformer detector."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        target = next((f"{new}{key[len(old) :]}" for old, new in _DENSE_PREFIXES if key.startswith(old)), key)
        target = _DENSE_NAMES.get(key, target)
        if target == "backbone.pos_embed" and target in model_state:
            value = _resize_positions(value, model_state[target].shape[1])
        if target in model_state or not _BOOKKEEPING.search(key):
            renamed[target] = value
    return renamed


def _resize_positions(table: Tensor, tokens: int) -> Tensor:
    """Resize a square positional embedding [1, 1 + n * n, C] with class token to `tokens` entries, bicubic."""
    if table.shape[1] == tokens:
        return table
    side, wanted = (int((count - 1) ** 0.5) for count in (table.shape[1], tokens))
    if table.shape[1] != side * side + 1:
        return table  # not square plus class token: reported as a shape mismatch
    grid = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)


def rename_rpn(path: str, state: State) -> dict[str, Tensor]:
    """Return the weights of a BB_RPN_WEIGHTS file under `offline_*` keys.

    A detector's `backbone.*` and `proposal_generator.*` become the offline RPN; its RoI heads are
    ignored. From a file with `offline_*` keys (a whole RegionCLIP checkpoint) these are taken.

    Raises:
        UserError: the file holds no RPN.
    """
    offline = {key: value for key, value in state.items() if key.startswith("offline_")}
    if not offline:
        offline = {
            _RPN_PARTS[part] + key.removeprefix(part): value
            for key, value in state.items()
            if (part := key.split(".")[0]) in _RPN_PARTS
        }
    if not any(".rpn_head." in key for key in offline):
        raise user_error(
            f"MODEL.CLIP.BB_RPN_WEIGHTS {path}",
            "a detector with a region proposal network (proposal_generator.rpn_head.*)",
            f"keys such as {', '.join(sorted(state)[:3])}",
            "use one of the rpn_*.pth files",
        )
    return {key: value for key, value in offline.items() if not _BOOKKEEPING.search(key)}


def rename_teacher(path: str, state: State) -> dict[str, Tensor]:
    """Return the trained image encoder of a CLIP or RegionCLIP file under `teacher_backbone.*`.

    Raises:
        UserError: the file holds no CLIP image encoder.
    """
    for prefix in ("visual.", "backbone.", "teacher_backbone."):
        image_encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if "attnpool.positional_embedding" in image_encoder:
            return {
                f"teacher_backbone.{key}": value for key, value in image_encoder.items() if not _BOOKKEEPING.search(key)
            }
    raise user_error(
        f"MODEL.CLIP.TEACHER_WEIGHTS {path}",
        "a CLIP image encoder with its attention pool (visual.* or backbone.*)",
        f"keys such as {', '.join(sorted(state)[:3])}",
        "use an OpenAI CLIP file or a RegionCLIP checkpoint",
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


def _is_imagenet_backbone(state: Collection[str]) -> bool:
    return any(key in state for key in _IMAGENET_STEM)


def _align_imagenet(state: State, model_state: State) -> dict[str, Tensor]:
    # Caffe2 names have underscores, which Detectron2's own converter handles.
    is_caffe2 = "conv1_w" in state
    own = {key: value for key, value in model_state.items() if not key.startswith("offline_")}
    return dict(align_and_update_state_dicts(own, dict(state), c2_conversion=is_caffe2))
