"""Class lists included in the package, so that `--vocabulary lvis` needs no file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from regionclip.clip.class_embeddings import read_names
from regionclip.clip.class_name_files import read_class_names, split_synonyms
from regionclip.clip.prompts import clean_name
from regionclip.data.datasets.coco_split import ALL_CATEGORIES, BASE_CATEGORIES, NOVEL_CATEGORIES
from regionclip.data.emoji_scenes.concepts import BASE, NOVEL, read_concepts
from regionclip.errors import user_error
from regionclip.files import existing_file


def _coco() -> list[str]:
    return [category["name"] for category in COCO_CATEGORIES if category["isthing"]]


def _lvis(*, base_only: bool = False) -> list[str]:
    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    return [clean_name(c["name"]) for c in categories if not (base_only and c["frequency"] == "r")]


CLASS_LISTS: dict[str, Callable[[], list[str]]] = {
    "coco": _coco,
    "coco65": lambda: list(ALL_CATEGORIES.values()),
    "coco48": lambda: list(BASE_CATEGORIES.values()),
    "coco17": lambda: list(NOVEL_CATEGORIES.values()),
    "lvis": _lvis,
    "lvis866": lambda: _lvis(base_only=True),
    "emoji": lambda: [concept.name for concept in read_concepts()],
    "emoji880": lambda: [concept.name for concept in read_concepts() if concept.split == BASE],
    "emoji294": lambda: [concept.name for concept in read_concepts() if concept.split == NOVEL],
}
"""Class names of COCO (80; 65 of open-vocabulary COCO; its 48 base and 17 novel), LVIS (1203; 866 base), and of the
synthetic emoji-scenes dataset (1174; 880 base, 294 novel)."""

PUBLISHED_EMBEDDINGS = {
    "coco65": "coco_65_cls_emb",
    "coco48": "coco_48_base_cls_emb",
    "coco17": "coco_17_target_cls_emb",
    "lvis": "lvis_1203_cls_emb",
    "lvis866": "lvis_866_base_cls_emb",
}
"""Stem of upstream's embedding file by class list; the file for RN50x4 has the suffix `_rn50x4`."""


DETPRO_PROMPTS = "iou_neg5_ens"
"""Stem of DetPro's embeddings of LVIS by learned prompts."""


def names_of_published(path: str | Path) -> list[str]:
    """Return the class names of an embedding file with one of upstream's names; empty for other files."""
    stem = re.sub(r"_rn50x4$", "", Path(path).stem)
    known = {stem: name for name, stem in PUBLISHED_EMBEDDINGS.items()} | {DETPRO_PROMPTS: "lvis"}
    return CLASS_LISTS[known[stem]]() if stem in known else []


def names_of_embeddings(path: str | Path) -> list[str]:
    """Return the class names of an embedding file: those stored in it, or those of upstream's file of its name."""
    return read_names(path) or names_of_published(path)


NAME_FILES = frozenset({".txt", ".json", ".yaml", ".yml", ".csv"})
"""Endings that no class name has."""

NAMES_MARK = "names:"
"""Start of a config value with class names as JSON, which can be no list, file or number."""


def write_names(names: Sequence[str]) -> str:
    """Return class names as a config value for `parse_names`, whatever characters they have."""
    return NAMES_MARK + json.dumps(list(names)) if names else ""


def parse_names(text: str, *, synonyms: bool = True) -> list[str]:
    """Return the class names that a config key names: a class list, a file, names with commas, or `write_names`.

    Args:
        text: the value.
        synonyms: return all synonyms of a class; else the first.

    Raises:
        UserError: a file that is not there.
    """
    groups: Sequence[str | Sequence[str]] = []
    if text.startswith(NAMES_MARK):
        groups = json.loads(text.removeprefix(NAMES_MARK))
    elif text in CLASS_LISTS:
        groups = CLASS_LISTS[text]()
    elif text and existing_file(text) is not None:
        groups = read_class_names(text)
    elif Path(text).suffix.lower() in NAME_FILES:
        fix = "correct the path, or separate names by commas"
        raise user_error(text, "a file of class names", "no such file", fix)
    elif text:
        groups = [split_synonyms(part) for part in text.split(",")]
    listed = [[group] if isinstance(group, str) else list(group) for group in groups]
    return [name for group in listed for name in (group if synonyms else group[:1])]
