"""Classes of a config: the embeddings of a file, and their names."""

from __future__ import annotations

from detectron2.config import CfgNode

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.data.class_lists import names_of_embeddings, parse_names
from regionclip.modeling.configured_classes import ConfiguredClasses


def build_classes(cfg: CfgNode, key: str, rows: int | None = None) -> ConfiguredClasses | None:
    """Return the classes of the file that MODEL.CLIP.`key` names; None if it names none.

    Raises:
        UserError: unreadable file, or one of another shape.
    """
    path = cfg.MODEL.CLIP[key]
    if not path:
        return None
    embeddings = load_class_embeddings(path, rows=rows, dim=cfg.MODEL.CLIP.TEXT_EMB_DIM, key=f"MODEL.CLIP.{key}")
    return ConfiguredClasses(embeddings, names_of_embeddings(path))


def trained_names(cfg: CfgNode) -> list[str]:
    """Return the class names of the labels: RAL.CLASSES, or those of TEXT_EMB_PATH; empty if unknown."""
    given = cfg.MODEL.RALF.RAL.CLASSES
    return parse_names(given, synonyms=False) if given else names_of_embeddings(cfg.MODEL.CLIP.TEXT_EMB_PATH or "")


def tested_names(cfg: CfgNode) -> list[str]:
    """Return the class names of evaluation, of the embedding file; empty if unknown."""
    return names_of_embeddings(cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH or cfg.MODEL.CLIP.TEXT_EMB_PATH or "")
