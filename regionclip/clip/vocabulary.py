"""Vocabulary of a detector: class names, their embeddings, and the origin of these."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.class_name_files import Word, read_class_names, split_synonyms
from regionclip.clip.prompts import PromptEnsemble, prompt_ensemble, same_to_clip
from regionclip.errors import Problem, UserError, user_error
from regionclip.files import atomic_write, read_lines, resolve_path
from regionclip.isolation import with_own_settings

if TYPE_CHECKING:
    from regionclip.clip.embedder import NameEmbedder

__all__ = ["Classifier", "Vocabulary", "Word", "content_hash", "read_class_names"]

TEXT, REGION = "text", "region"
"""Where embeddings lie: around the mean of text embeddings, or around that of region embeddings."""

MESSAGE_LIMIT = 5
"""Maximum number of class names that an error message lists."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """K classes with embeddings in the joint image-text space.

    A class has one row, or one row per synonym, of which the most similar to a region counts.
    """

    names: tuple[str, ...]
    """Names of the K classes, in the order of class ids."""
    embeddings: Tensor
    """float32 [R, D] with R = K, or more with synonyms."""
    class_of_row: Tensor
    """int64 [R] in ascending order, each class at least once."""
    synonyms: tuple[tuple[str, ...], ...] = ()
    """Synonyms of each class, the name first; empty if unknown."""
    model: str = ""
    """CLIP size, such as RN50; empty if unknown, as in upstream's files."""
    text_weights: str = ""
    """Hash of the text encoder's weights; empty if unknown."""
    templates: str = ""
    """Name and hash of the prompt ensemble; empty if unknown."""
    normalized: bool = False
    """Whether the rows are unit vectors; has no effect, as cosines are compared."""
    source: str = "words"
    """Origin of the vocabulary, for messages."""
    examples: tuple[tuple[str, ...], ...] = ()
    """Example images of each class, with their boxes; empty without any."""
    space: str = TEXT
    """`TEXT`, or `REGION` for examples that have not been moved to where text embeddings are."""

    def __len__(self) -> int:
        """Return the number of classes K."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """Width D of the joint space."""
        return self.embeddings.shape[1]

    @classmethod
    @with_own_settings
    def from_names(
        cls,
        words: Sequence[Word],
        embedder: NameEmbedder,
        *,
        templates: str | Sequence[str] | PromptEnsemble = "regionclip",
        synonyms: Literal["max", "mean"] = "max",
    ) -> Vocabulary:
        """Embed class names, or lists of synonyms.

        Args:
            words: for each class a string, in which `|` separates synonyms, or a list of synonyms.
            embedder: the detector's text encoder: `RegionCLIP.embedder`.
            templates: name of a prompt ensemble (`regionclip`, `cora`, `single`), a text file with one
                template per line, or templates.
            synonyms: compare a region with each synonym and take the best (`max`), or with
                their mean (`mean`).

        Raises:
            UserError: no class names, an empty one, or two that are the same to CLIP.
        """
        classes = _as_classes(words)
        _require_words(classes, embedder)
        ensemble = prompt_ensemble(templates)
        rows = embedder.embed([word for group in classes for word in group], ensemble)
        owner = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(group) for group in classes]))
        if synonyms == "mean":
            rows, owner = _means(rows, owner, len(classes)), torch.arange(len(classes))
        return cls(
            names=tuple(group[0] for group in classes),
            embeddings=rows,
            class_of_row=owner,
            synonyms=tuple(classes),
            model=embedder.model,
            text_weights=embedder.weights_hash,
            templates=f"{ensemble.name} {ensemble.fingerprint}",
            normalized=ensemble.normalized and synonyms == "max",
        )

    @classmethod
    @with_own_settings
    def from_concepts(cls, concepts: Sequence[str], embedder: NameEmbedder) -> Vocabulary:
        """Embed the lines of a list with upstream's 81 templates, unchanged: duplicates are allowed.

        For concept pools and published command lines; detectors use `from_names`.
        """
        ensemble = prompt_ensemble("regionclip")
        return cls(
            names=tuple(concepts),
            embeddings=embedder.embed(concepts, ensemble),
            class_of_row=torch.arange(len(concepts)),
            model=embedder.model,
            text_weights=embedder.weights_hash,
            templates=f"{ensemble.name} {ensemble.fingerprint}",
        )

    @classmethod
    @with_own_settings
    def from_file(cls, path: str | Path, *, names: Sequence[str] = ()) -> Vocabulary:
        """Read embeddings: a safetensors file written by `save`, or upstream's bare tensor `.pth` [K, D].

        Args:
            path: file, relative to the working directory or the repository.
            names: class names for a file without them, in which `|` separates synonyms; by default they are
                read from a text file of the same name next to it.

        Raises:
            UserError: unreadable or damaged file, or not one name per class.
        """
        embeddings = load_class_embeddings(path)
        place = resolve_path(path)
        metadata, owner = _about(place) if place.suffix == ".safetensors" else ({}, None)
        if metadata.get("hash") not in (None, content_hash(embeddings)):
            fix = "write or download the file again"
            raise user_error(str(path), "embeddings with the hash they were written with", "others", fix)
        owner = torch.arange(len(embeddings)) if owner is None else owner
        _require_rows(str(path), embeddings, owner)
        groups = [tuple(split_synonyms(name)) for name in names or _names_beside(place)]
        names = tuple(metadata.get("names", ())) or tuple(group[0] for group in groups)
        if len(names) != int(owner[-1]) + 1:
            fix = f"name them, or put a line for each into {place.with_suffix('.txt').name} beside the file"
            raise user_error(str(path), f"names of its {int(owner[-1]) + 1} classes", f"{len(names)}", fix)
        return cls(
            names=names,
            embeddings=embeddings,
            class_of_row=owner,
            synonyms=tuple(tuple(group) for group in metadata.get("synonyms", ())) or _where_some(groups),
            model=metadata.get("model", ""),
            text_weights=metadata.get("text_weights", ""),
            templates=metadata.get("templates", ""),
            normalized=metadata.get("normalised") == "true",
            source=str(path),
            examples=_examples_of(str(path), metadata, len(names)),
            space=metadata.get("space", TEXT),
        )

    def class_embeddings(self) -> Tensor:
        """Return one unit vector for each class [K, D]: the mean of its synonyms' unit vectors, normalized again."""
        return F.normalize(_means(self.embeddings, self.class_of_row, len(self)), dim=1)

    def rows_of_words(self) -> dict[str, Tensor]:
        """Return the row [D] of each word that has one of its own: not the mean of synonyms."""
        if any(self.examples):
            return {}
        groups = self.synonyms or tuple((name,) for name in self.names)
        if len(self.embeddings) == len(self):
            return {group[0]: row for group, row in zip(groups, self.embeddings, strict=True) if len(group) == 1}
        words = [word for group in groups for word in group]
        return dict(zip(words, self.embeddings, strict=True)) if len(words) == len(self.embeddings) else {}

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with metadata, and return its path; raises `UserError` for another extension."""
        if Path(path).suffix != ".safetensors":
            raise user_error(str(path), "a name that ends in .safetensors", Path(path).suffix or "none", "rename it")
        metadata = {
            "names": json.dumps(self.names),
            "synonyms": json.dumps(self.synonyms),
            "examples": json.dumps(self.examples),
            "space": self.space,
            "model": self.model,
            "text_weights": self.text_weights,
            "templates": self.templates,
            "normalised": str(self.normalized).lower(),
            "hash": content_hash(self.embeddings),
        }
        tensors = {"embeddings": self.embeddings.contiguous()}
        if len(self.embeddings) > len(self):
            tensors["class_of_row"] = self.class_of_row
        with atomic_write(path) as file:
            file.write(save(tensors, metadata))
        return Path(path)

    @with_own_settings
    def without(self, words: Sequence[str]) -> Vocabulary | None:
        """Return the vocabulary without these class names and synonyms, compared as CLIP reads them; None if empty."""
        gone = {same_to_clip(word) for word in words}
        has_rows = len(self.embeddings) > len(self) and bool(self.synonyms)
        of_rows = [word for group in self.synonyms for word in group] if has_rows else self.names
        rows = torch.tensor([same_to_clip(word) not in gone for word in of_rows], dtype=torch.bool)
        kept = torch.zeros(len(self), dtype=torch.bool).index_fill_(0, self.class_of_row[rows], True)
        classes = kept.nonzero()[:, 0].tolist()
        if not classes:
            return None
        synonyms = [tuple(w for w in group if same_to_clip(w) not in gone) for group in self.synonyms]
        return replace(
            self,
            names=tuple(self.names[i] for i in classes),
            embeddings=self.embeddings[rows],
            class_of_row=(kept.cumsum(0) - 1)[self.class_of_row[rows]],
            synonyms=tuple(synonyms[i] for i in classes) if synonyms else (),
            examples=tuple(self.examples[i] for i in classes) if self.examples else (),
        )

    def require_text_space(self) -> None:
        """Raise a `UserError` for examples that were not moved to where text embeddings are."""
        if self.space != TEXT:
            expected, fix = "embeddings that can stand next to words", "set background None (--background none)"
            raise user_error(f"vocabulary {self.source}", expected, "those of examples alone, not moved", fix)

    def require_fit(self, dim: int, model: str, text_weights: str = "") -> None:
        """Raise a `UserError` unless the embeddings fit this CLIP, as far as both are known."""
        made_of, wanted = f"{self.model or 'an unknown CLIP'}, width {self.dim}", f"{model}, width {dim}"
        fits = self.dim == dim and self.model in ("", model)
        if fits and self.text_weights and text_weights and self.text_weights != text_weights:
            made_of, wanted = f"weights {self.text_weights}", f"text weights {text_weights}, those of the detector"
            fits = False
        if not fits:
            what = f"vocabulary {self.source}"
            raise user_error(what, f"embeddings of {wanted}", made_of, "embed the words with this detector's CLIP")


class Classifier:
    """Cosine classifier of a vocabulary; the rows are normalized once."""

    @with_own_settings
    def __init__(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Create the classifier of a vocabulary on a device."""
        self.classes = len(vocabulary)
        self._rows = F.normalize(vocabulary.embeddings, dim=1).to(device)
        has_synonyms = len(vocabulary.embeddings) > self.classes
        self._class_of_row = vocabulary.class_of_row.to(device) if has_synonyms else None

    def __call__(self, unit_regions: Tensor) -> Tensor:
        """Return the cosines [N, K] of unit region embeddings [N, D], with the maximum over synonyms."""
        cosines = unit_regions @ self._rows.T
        if self._class_of_row is None:
            return cosines
        best = cosines.new_full((len(cosines), self.classes), -1.0)
        return best.scatter_reduce(1, self._class_of_row.expand_as(cosines), cosines, "amax")


def content_hash(embeddings: Tensor) -> str:
    """Return a short hash of float32 values."""
    return hashlib.sha256(embeddings.float().cpu().numpy().tobytes()).hexdigest()[:16]


def _names_beside(path: Path) -> list[str]:
    beside = path.with_suffix(".txt")
    return read_lines(beside, "names") if beside.is_file() else []


def _where_some(groups: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(groups) if any(len(group) > 1 for group in groups) else ()


def _about(path: Path) -> tuple[dict[str, Any], Tensor | None]:
    """Return the metadata of a safetensors file, and the class of each row if that is not the row itself."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = dict(file.metadata() or {})
        owner = file.get_tensor("class_of_row") if "class_of_row" in file.keys() else None  # noqa: SIM118
    for key in ("names", "synonyms", "examples"):
        try:
            metadata[key] = json.loads(metadata.get(key, "[]"))
        except ValueError as error:
            raise user_error(f"{path}: {key}", "a JSON list", str(error), "write the file again") from error
    return metadata, owner


def _examples_of(path: str, metadata: dict[str, Any], classes: int) -> tuple[tuple[str, ...], ...]:
    groups = metadata.get("examples", [])
    is_list = isinstance(groups, list) and all(isinstance(group, list) for group in groups)
    if not is_list or len(groups) not in (0, classes):
        raise user_error(
            f"{path}: examples", f"a list for each of {classes} classes", str(groups)[:80], "write it again"
        )
    return tuple(tuple(map(str, group)) for group in groups)


def _require_rows(path: str, embeddings: Tensor, owner: Tensor) -> None:
    fix = "write the file again"
    steps = owner.diff()
    in_order = owner.ndim == 1 and len(owner) == len(embeddings) > 0
    if not (in_order and owner[0] == 0 and bool(((steps == 0) | (steps == 1)).all())):
        raise user_error(path, "rows of class 0, 1, ... in this order", f"{len(embeddings)} rows of others", fix)
    empty = (embeddings.norm(dim=1) == 0).nonzero()[:, 0]
    if len(empty):
        raise user_error(path, "a direction for each class", f"zeros in row {int(empty[0])}", "embed the words again")


def _as_classes(words: Sequence[Word]) -> list[tuple[str, ...]]:
    classes = [(word,) if isinstance(word, str) else word for word in words]
    for number, group in enumerate(classes, start=1):
        strange = [word for word in group if not _is_text(word)] if isinstance(group, Sequence) else [group]
        if strange or isinstance(group, bytes):
            what = f"word {number} of the vocabulary"
            raise user_error(what, "text, or a list of synonyms", ascii(strange or group), "write it as a string")
    return [tuple(" ".join(part.split()) for word in group for part in split_synonyms(word)) for group in classes]


def _is_text(word: object) -> bool:
    # An unpaired surrogate is no character, and cannot be written.
    return isinstance(word, str) and not any("\ud800" <= letter <= "\udfff" for letter in word)


def _require_words(classes: Sequence[tuple[str, ...]], embedder: NameEmbedder) -> None:
    if not classes:
        raise user_error("vocabulary", "at least one word", "none", 'name some, such as "cat, traffic cone"')
    problems = []
    by_tokens = defaultdict(list)
    words = ["", *(word for group in classes for word in group)]
    ids = dict(zip(words, embedder.token_ids(words), strict=True))
    for number, group in enumerate(classes, start=1):
        for word in group or ("",):
            tokens = ids[word]
            if embedder.has_marks(tokens):
                fix = "leave the mark of the tokenizer out"
                problems.append(Problem(f"word {number} of the vocabulary", "words alone", repr(word), fix))
            elif not tokens:
                fix = "remove it"
                problems.append(Problem(f"word {number} of the vocabulary", "letters", repr(word) or "nothing", fix))
            by_tokens[tokens].append(word)
    same = [" = ".join(map(repr, group)) for tokens, group in by_tokens.items() if tokens and len(group) > 1]
    if same:
        actual = "; ".join(same[:MESSAGE_LIMIT]) + (f"; {len(same)} in all" if len(same) > MESSAGE_LIMIT else "")
        fix = "keep one of each: CLIP reads no case, and two equal words would share the score"
        problems.append(Problem("vocabulary", "each word once", actual, fix))
    if problems:
        raise UserError(problems[:MESSAGE_LIMIT])


def _means(rows: Tensor, owner: Tensor, classes: int) -> Tensor:
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, owner, F.normalize(rows, dim=1))
    return sums / owner.bincount(minlength=classes)[:, None]
