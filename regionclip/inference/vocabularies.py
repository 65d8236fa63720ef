"""Vocabularies from user input: class names, the name of a class list, or a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from regionclip.clip.class_name_files import SYNONYM_MARK, Word, read_class_names, split_synonyms
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.prompts import PromptEnsemble, prompt_ensemble
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import CLASS_LISTS, PUBLISHED_EMBEDDINGS, names_of_published
from regionclip.errors import user_error
from regionclip.files import atomic_write, existing_file, resolve_path

logger = logging.getLogger(__name__)

Words = str | Path | Sequence[Word] | Vocabulary
"""Class names, the name of a class list, a file of class names or embeddings, or a vocabulary."""

EMBEDDING_FILES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class VocabularyOptions:
    """How class names are embedded."""

    templates: str | Sequence[str] | PromptEnsemble = "regionclip"
    synonyms: Literal["max", "mean"] = "max"

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown value of `synonyms`."""
        if self.synonyms not in ("max", "mean"):
            raise user_error("synonyms", "max or mean", repr(self.synonyms), "choose one")


def make_vocabulary(
    words: Words,
    embedder: Callable[[], NameEmbedder],
    options: VocabularyOptions,
    published_suffix: str | None = None,
) -> Vocabulary:
    """Return the vocabulary of `words`.

    Args:
        words: a list of class names, in which `|` separates synonyms, or of lists of synonyms; the name of
            a class list (`coco`, `coco65`, `coco48`, `coco17`, `lvis`, `lvis866`, `emoji`, `emoji880`, `emoji294`); a
            file of class names (`read_class_names`), or of embeddings; a vocabulary.
        embedder: returns the text encoder; called only if class names have to be embedded.
        options: templates and synonyms.
        published_suffix: suffix of the published embedding files of this CLIP (empty for RN50), which
            are then used for class lists without embedding anything.

    Raises:
        UserError: unknown name, unreadable file, or class names that are the same to CLIP.
    """
    if isinstance(words, Vocabulary):
        return words
    if not isinstance(words, str | Path):
        if not isinstance(words, Sequence) or isinstance(words, bytes):
            fix = 'give a list such as ["cat", "traffic cone"]'
            raise user_error("vocabulary", "words, a name or a file", type(words).__name__, fix)
        return _embed(words, embedder, options)
    name = str(words)
    if name in CLASS_LISTS:
        ready = _published(name, options, published_suffix)
        return ready or _embed(CLASS_LISTS[name](), embedder, options)
    path = existing_file(name)
    if path is None:
        expected = f"a list of words, {', '.join(CLASS_LISTS)}, or a file of words or embeddings"
        raise user_error("vocabulary", expected, repr(name[:100]), "correct the name, or write the words as a list")
    if path.suffix in EMBEDDING_FILES:
        return Vocabulary.from_file(path, names=names_of_published(path))
    return _embed(read_class_names(path), embedder, options)


def is_list_or_file(name: str) -> bool:
    """Return whether a name is that of a class list or file, rather than a class name."""
    return name in CLASS_LISTS or existing_file(name) is not None


def save_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write a safetensors file, or for `.pth` upstream's bare tensor [K, D] with the names in `.txt` next to it.

    Raises:
        UserError: a `.pth` cannot hold several rows per class.
    """
    if path.suffix == ".safetensors":
        vocabulary.save(path)
        return
    if len(vocabulary.embeddings) > len(vocabulary):
        fix = "average the synonyms (mean), or write .safetensors"
        raise user_error(str(path), "a row for each class", f"{len(vocabulary.embeddings)} rows", fix)
    lines = [f" {SYNONYM_MARK} ".join(group) for group in vocabulary.synonyms] or vocabulary.names
    with atomic_write(path) as file:
        torch.save(vocabulary.embeddings, file)
    with atomic_write(path.with_suffix(".txt")) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def split_words(text: str) -> list[Word]:
    """Return the class names of a list as typed on a command line: `cat | kitten, traffic cone`."""
    return [split_synonyms(group) for group in text.split(",")]


def _embed(words: Sequence[Word], embedder: Callable[[], NameEmbedder], options: VocabularyOptions) -> Vocabulary:
    return Vocabulary.from_names(words, embedder(), templates=options.templates, synonyms=options.synonyms)


def _published(name: str, options: VocabularyOptions, suffix: str | None) -> Vocabulary | None:
    stem = PUBLISHED_EMBEDDINGS.get(name)
    if stem is None or suffix is None or prompt_ensemble(options.templates).name != "regionclip":
        return None
    path = resolve_path(f"pretrained_ckpt/concept_emb/{stem}{suffix}.pth")
    if not path.is_file():
        return None
    logger.info("Embeddings of %s from %s", name, path)
    return Vocabulary.from_file(path, names=CLASS_LISTS[name]())
