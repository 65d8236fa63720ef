"""What a key layout of checkpoints is, and a slot for weights of their own file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

State = Mapping[str, Tensor]
"""A state dict."""

BOOKKEEPING = re.compile(
    r"(^|\.)(logit_scale|logit_bias|input_resolution|context_length|vocab_size|attn_mask|ignore_others|pixel_mean|pixel_std)$"
    r"|anchor_generator\.cell_anchors\."
)
"""Entries that are no detector weights: scalars of CLIP, constants of old Detectron2 files."""


@dataclass(frozen=True)
class Layout:
    """A published key layout of MODEL.WEIGHTS files."""

    name: str
    recognizes: Callable[[State, State], bool]
    """From the state dicts of the file and of the model."""
    rename: Callable[[str, State, State], dict[str, Tensor]]
    """Maps path and state dict of the file, and the state dict of the model, to weights under the model's keys.

    Keys that the model lacks are kept, and reported later. Raises `UserError` for weights that cannot be used.
    """


@dataclass(frozen=True)
class WeightSlot:
    """A part of the model whose weights a file of its own provides; they replace those of MODEL.WEIGHTS."""

    name: str
    key: str
    """Config key that names the file."""
    prefix: str
    """Of the part's keys."""
    rename: Callable[[str, State, State], dict[str, Tensor]]
    """As that of `Layout`; raises `UserError` for a file without the part."""
    is_used: Callable[[CfgNode], bool] = lambda cfg: True
    """Whether a model of this config has the part."""
