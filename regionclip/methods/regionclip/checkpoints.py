"""Checkpoint layouts and weight slots of RegionCLIP: files of its transformer detectors, and the teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.config.resolve import learns_from_pairs
from regionclip.engine.checkpoint.layouts.layout import BOOKKEEPING, Layout, State, WeightSlot
from regionclip.errors import user_error

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


def _rename_transformer(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a UniCL-style file under the keys of a transformer detector."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        target = next((f"{new}{key[len(old) :]}" for old, new in _DENSE_PREFIXES if key.startswith(old)), key)
        target = _DENSE_NAMES.get(key, target)
        if target == "backbone.pos_embed" and target in model_state:
            value = _resize_positions(value, model_state[target].shape[1])
        if target in model_state or not BOOKKEEPING.search(key):
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


def rename_teacher(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the trained image encoder of a CLIP or RegionCLIP file under `teacher_backbone.*`.

    Raises:
        UserError: the file holds no CLIP image encoder.
    """
    for prefix in ("visual.", "backbone.", "teacher_backbone."):
        image_encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if "attnpool.positional_embedding" in image_encoder:
            return {
                f"teacher_backbone.{key}": value for key, value in image_encoder.items() if not BOOKKEEPING.search(key)
            }
    raise user_error(
        f"MODEL.CLIP.TEACHER_WEIGHTS {path}",
        "a CLIP image encoder with its attention pool (visual.* or backbone.*)",
        f"keys such as {', '.join(sorted(state)[:3])}",
        "use an OpenAI CLIP file or a RegionCLIP checkpoint",
    )


LAYOUTS = (
    Layout(
        "UniCL, K-LITE or FocalNet", lambda state, model_state: "image_projection" in model_state, _rename_transformer
    ),
)

SLOTS = (WeightSlot("teacher", "MODEL.CLIP.TEACHER_WEIGHTS", "teacher_", rename_teacher, is_used=learns_from_pairs),)
