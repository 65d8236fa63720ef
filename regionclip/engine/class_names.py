"""Classes of a config: the embeddings of a file, and their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.prompts import plain_name
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import names_of_embeddings, parse_names
from regionclip.errors import Problem
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


def text_weights_of(path: str) -> str:
    """Return the hash of the text encoder that an embedding file was made with; empty if unknown."""
    return (
        Vocabulary.from_file(path).text_weights if path.endswith(".safetensors") and names_of_embeddings(path) else ""
    )


def are_same_labels(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether two lists of class names are the same, in the same order.

    Underscores and parentheses do not count. Of long lists one name in a hundred may be another for the same class, as
    in LVIS, but no class may be at another place.
    """
    pairs = [(plain_name(a), plain_name(b)) for a, b in zip(names, classes, strict=False)]
    different = [(a, b) for a, b in pairs if a != b]
    known = {a for a, _ in pairs}, {b for _, b in pairs}
    moved = any(a in known[1] or b in known[0] for a, b in different)
    return len(names) == len(classes) and not moved and len(different) <= len(names) // 100


def label_problems(names: Sequence[str], datasets: Sequence[str], key: str) -> Iterator[Problem]:
    """Yield which training sets have other classes than the names that a config gives for the labels of `key`."""
    for dataset in datasets:
        classes = MetadataCatalog.get(dataset).get("thing_classes")
        if classes is not None and not are_same_labels(names, classes):
            expected = f"the {len(classes)} classes of {dataset}, in their order: {', '.join(classes[:5])}"
            yield Problem(key, expected, f"{len(names)} names: {', '.join(names[:5])}", "name their class list or file")
