"""One recipe for a detector: build it, load its weights, optimize it for inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from torch import nn

from regionclip.engine.checkpoint.loading import load_weights, weight_files
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import require_detector
from regionclip.modeling.inference.prepare import prepare_as_configured


def load_model(
    cfg: CfgNode,
    weights: str | None = None,
    slots: Mapping[str, str] | None = None,
    *,
    trust_pickle: bool = False,
    allow_missing: Sequence[str] = (),
    sets_class_names: bool = False,
) -> nn.Module:
    """Build the model of a config, and load its weights.

    Args:
        cfg: checked config.
        weights: file of the model; None takes MODEL.WEIGHTS.
        slots: files of further parts by weight slot; None takes those of the config.
        trust_pickle: allow files that run code.
        allow_missing: key prefixes that may stay without weights.
        sets_class_names: class names will be set, so that what they replace may stay without weights too.

    Raises:
        UserError: a file cannot be read, a part that the config needs is in no file, or the model takes no class names.
    """
    model = build_model(cfg)
    unused = require_detector(model).unused_with_class_names if sets_class_names else ()
    load_weights(
        model,
        cfg.MODEL.WEIGHTS if weights is None else weights,
        weight_files(cfg) if slots is None else slots,
        trust_pickle=trust_pickle,
        allow_missing=[*allow_missing, *unused],
    )
    return model


def load_detector(
    cfg: CfgNode,
    weights: str | None = None,
    slots: Mapping[str, str] | None = None,
    *,
    trust_pickle: bool = False,
    allow_missing: Sequence[str] = (),
    sets_class_names: bool = False,
) -> nn.Module:
    """Return `load_model`'s model optimized for inference, as the config says."""
    options = {"trust_pickle": trust_pickle, "sets_class_names": sets_class_names}
    return prepare_as_configured(load_model(cfg, weights, slots, allow_missing=allow_missing, **options), cfg)
