"""Checkpoint layouts of CORA's two branches, and the slot of the region prompt."""

from __future__ import annotations

import re

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import Layout, State, WeightSlot
from regionclip.errors import user_error

META_ARCHITECTURES = ("CORA", "RegionPromptCLIP")

PROMPT = "attnpool.positional_embedding"
"""The one key of a prompt file, and without its first part the prompt's key in the attention pool."""

_NAMES = (
    (re.compile(r"^backbone\.0\.body\."), "backbone."),
    (re.compile(r"^backbone\.0\.attn_?pool\."), "backbone.attnpool."),
    (re.compile(r"^backbone\.0\.layer4\."), "backbone.layer4."),
    (re.compile(r"^classifier\."), "lang_encoder."),
)
"""Published prefixes, and those of the model; the stage without its own `layer4` has it next to the body."""

_ALIASES = re.compile(r"^(bbox_embed|backbone\.attn_pool|backbone\.layer4)\.")
"""Keys that hold tensors of other keys again."""


def _recognizes(state: State, model_state: State) -> bool:
    return any(key.startswith("backbone.0.") for key in state)


def _rename(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if _ALIASES.match(key):
            continue
        for pattern, prefix in _NAMES:
            key = pattern.sub(prefix, key)
        renamed[key] = value
    return renamed


def rename_prompt(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the region prompt of a file under the key of the model.

    Raises:
        UserError: the file holds no prompt.
    """
    found = [key for key in state if key.endswith(PROMPT) or key.endswith("attn_pool.positional_embedding")]
    if not found:
        actual, fix = f"keys such as {', '.join(sorted(state)[:3])}", "use a file that `regionclip cora prompt` wrote"
        raise user_error(f"MODEL.CORA.PROMPT_WEIGHTS {path}", PROMPT, actual, fix)
    return {f"backbone.{PROMPT}": state[found[0]]}


LAYOUTS = (Layout("CORA", _recognizes, _rename),)

SLOTS = (
    WeightSlot(
        "region_prompt",
        "MODEL.CORA.PROMPT_WEIGHTS",
        f"backbone.{PROMPT}",
        rename_prompt,
        is_used=lambda cfg: cfg.MODEL.META_ARCHITECTURE in META_ARCHITECTURES,
    ),
)
