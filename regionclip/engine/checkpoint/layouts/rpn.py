"""Weights of the offline RPN, from a file of a whole detector."""

from __future__ import annotations

from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import BOOKKEEPING, State, WeightSlot
from regionclip.engine.checkpoint.layouts.mmdetection import PUBLISHED_OLN
from regionclip.errors import user_error

_RPN_PARTS = {"backbone": "offline_backbone", "proposal_generator": "offline_proposal_generator"}
_OFFLINE = "offline_"


def rename_rpn(path: str, state: State, model_state: State) -> dict[str, Tensor]:
    """Return the weights of a BB_RPN_WEIGHTS file under `offline_*` keys.

    A detector's `backbone.*` and `proposal_generator.*` become the offline RPN; its RoI heads are
    ignored. From a file with `offline_*` keys (a whole RegionCLIP checkpoint) these are taken. A published OLN is
    renamed first.

    Raises:
        UserError: the file holds no RPN.
    """
    if PUBLISHED_OLN.recognizes(state, model_state):
        parts = {key.removeprefix(_OFFLINE): value for key, value in model_state.items() if key.startswith(_OFFLINE)}
        state = PUBLISHED_OLN.rename(path, state, parts)
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
    return {key: value for key, value in offline.items() if not BOOKKEEPING.search(key)}


RPN = WeightSlot(
    "rpn",
    "MODEL.CLIP.BB_RPN_WEIGHTS",
    "offline_",
    rename_rpn,
    is_used=lambda cfg: bool(cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN"),
)
