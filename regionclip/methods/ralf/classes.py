"""Class names of the labels, and their embeddings in a file of base and novel classes."""

from __future__ import annotations

from detectron2.config import CfgNode

from regionclip.clip.prompts import same_to_clip
from regionclip.data.class_lists import parse_names
from regionclip.engine.class_names import build_classes, trained_names
from regionclip.errors import user_error
from regionclip.modeling.configured_classes import ConfiguredClasses


def label_names(cfg: CfgNode) -> list[str]:
    """Return the class names of the labels: DetPro's BASE_CLASSES, RAL.CLASSES, or those of TEXT_EMB_PATH."""
    if cfg.MODEL.META_ARCHITECTURE == "DetPro":
        return parse_names(cfg.MODEL.RALF.BASE_CLASSES, synonyms=False)
    return trained_names(cfg)


def labels_key(cfg: CfgNode) -> str:
    """Return the config key of `label_names`."""
    is_detpro = cfg.MODEL.META_ARCHITECTURE == "DetPro"
    return "MODEL.RALF.BASE_CLASSES" if is_detpro else "MODEL.RALF.RAL.CLASSES"


def build_base_classes(cfg: CfgNode) -> ConfiguredClasses | None:
    """Return the BASE_CLASSES with their rows of TEXT_EMB_PATH, which may have novel ones too; None without a file.

    Raises:
        UserError: unreadable file, or one without a base class.
    """
    found = build_classes(cfg, "TEXT_EMB_PATH")
    if found is None:
        return None
    rows = {same_to_clip(name): row for row, name in enumerate(found.names)}
    base = parse_names(cfg.MODEL.RALF.BASE_CLASSES, synonyms=False)
    if missing := [name for name in base if same_to_clip(name) not in rows]:
        expected, fix = "the names of MODEL.RALF.BASE_CLASSES in the file", "embed them too, or correct BASE_CLASSES"
        what = f"MODEL.CLIP.TEXT_EMB_PATH {cfg.MODEL.CLIP.TEXT_EMB_PATH}"
        raise user_error(what, expected, f"none of {', '.join(missing[:5])}", fix)
    return ConfiguredClasses(found.embeddings[[rows[same_to_clip(name)] for name in base]], base)
