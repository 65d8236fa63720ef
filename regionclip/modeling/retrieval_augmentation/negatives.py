"""Negative words of classes: one matrix of text embeddings, and lists of its rows (RALF, section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.prompts import same_to_clip
from regionclip.errors import user_error
from regionclip.files import atomic_write, resolve_path

NO_WORD = -1
"""Fills the lists of classes with fewer words than the longest."""

BUILD = "build it with regionclip ralf build-store, or import it with regionclip ralf import-store"


@dataclass(frozen=True)
class NegativeWords:
    """Content of a store file."""

    names: tuple[str, ...]
    """Of the C classes."""
    anchors: Tensor
    """Text embeddings of the classes, float [C, D]."""
    words: Tensor
    """Text embeddings of the words, float [V, D], used half in size as float16."""
    hard: Tensor
    """Rows of the most similar words of each class, int32 [C, M], in no order; `NO_WORD` after the last."""
    easy: Tensor
    """The same of the least similar ones."""
    word_names: tuple[str, ...] = ()
    """Of the V words; empty if unknown."""
    clip: str = ""
    """Name of the CLIP size; empty if unknown."""
    text_weights: str = ""
    """Hash of the text encoder's weights; empty if unknown."""

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return int(self.anchors.shape[1])

    def rows_of(self, names: Sequence[str], what: str) -> list[int]:
        """Return the row of each class name.

        Args:
            names: of the classes.
            what: names the file in messages.

        Raises:
            UserError: the store lacks a name.
        """
        known = {same_to_clip(name): row for row, name in enumerate(self.names)}
        if missing := [name for name in names if same_to_clip(name) not in known]:
            raise user_error(what, "negative words of each trained class", f"none of {', '.join(missing[:5])}", BUILD)
        return [known[same_to_clip(name)] for name in names]


def write_negative_words(path: str | Path, store: NegativeWords) -> None:
    """Write a store as safetensors, atomically."""
    tensors = {
        "anchors": store.anchors.float(),
        "words": store.words.half(),
        "hard": store.hard.int(),
        "easy": store.easy.int(),
    }
    about = {"names": list(store.names), "words": list(store.word_names), "clip": store.clip}
    header = {"ralf": json.dumps({**about, "text_weights": store.text_weights})}
    with atomic_write(path) as file:
        file.write(save({key: value.contiguous() for key, value in tensors.items()}, header))


def read_negative_words(path: str | Path, key: str = "") -> NegativeWords:
    """Read a store.

    Args:
        path: file of `write_negative_words`.
        key: config key of the file, for messages.

    Raises:
        UserError: missing file, or no store.
    """
    place, what = resolve_path(path), f"{key} {path}".strip()
    if not place.is_file():
        raise user_error(what, "a file of negative words", "no such file", BUILD)
    try:
        with safe_open(place, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["ralf"])
            tensors = {name: file.get_tensor(name) for name in ("anchors", "words", "hard", "easy")}
        names, words = tuple(about["names"]), tuple(about["words"])
        store = NegativeWords(
            names, **tensors, word_names=words, clip=about["clip"], text_weights=about["text_weights"]
        )
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise user_error(what, "a file of negative words", f"another file ({error})", BUILD) from error
    if not _is_consistent(store):
        raise user_error(what, "lists of words for each class", "lists that do not fit the words", BUILD)
    return store


def _is_consistent(store: NegativeWords) -> bool:
    """Return whether tables are finite, and lists have rows of the words, `NO_WORD` after the last."""
    classes, lists = len(store.names), (store.hard, store.easy)
    tables_fit = store.anchors.ndim == store.words.ndim == 2 and store.words.shape[1] == store.dim
    if not tables_fit or any(rows.ndim != 2 or not rows.shape[1] for rows in lists):
        return False
    are_finite = all(bool(torch.isfinite(table).all()) for table in (store.anchors, store.words))
    are_rows = all(int(rows.min()) >= NO_WORD and int(rows.max()) < len(store.words) for rows in lists if len(rows))
    is_valid_first = all(bool(((rows == NO_WORD).int().diff(dim=1) >= 0).all()) for rows in lists)
    return are_finite and are_rows and is_valid_first and {len(store.anchors), *map(len, lists)} == {classes}


@dataclass(frozen=True)
class DrawnNegatives:
    """What boxes are compared with: unit text embeddings, and means over drawn ones."""

    anchors: Tensor
    """Of the class of each box, float [N, D]."""
    hard: Tensor
    """Mean over hard negatives, float [N, D]; its product with a region is their mean cosine."""
    easy: Tensor
    """Mean over easy negatives, float [N, D]."""
    complete: Tensor
    """Bool [N]: boxes whose class has both."""


class NegativeStore(nn.Module):
    """Negative words by label of a detector; buffers that are no weights."""

    anchors: Tensor
    words: Tensor

    def __init__(self, store: NegativeWords, rows: Sequence[int]) -> None:
        """Create a store for labels; `rows` has the class of the store that each label is."""
        super().__init__()
        wanted = torch.tensor(list(rows), dtype=torch.int64)
        self.register_buffer("anchors", F.normalize(store.anchors[wanted].float(), dim=1), persistent=False)
        self.register_buffer("words", store.words.half(), persistent=False)
        # On the CPU, where rows are drawn, whatever the device of the model.
        self.lists = {"hard": store.hard[wanted], "easy": store.easy[wanted]}
        self.counts = {side: (rows != NO_WORD).sum(dim=1) for side, rows in self.lists.items()}

    def draw(self, labels: Tensor, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the hard and easy negatives of boxes, uniformly and without replacement.

        Args:
            labels: int64 [N], of the boxes.
            count: number q of words of each side; of classes with fewer, all are taken.
            generator: of random numbers, on the CPU.

        Returns:
            By side, positions in the lists of the class, int64 [N, q]; `NO_WORD` where a class has fewer.
        """
        return {
            side: torch.stack([_draw(int(self.counts[side][label]), count, generator) for label in labels.tolist()])
            if len(labels)
            else torch.empty(0, count, dtype=torch.int64)
            for side in self.lists
        }

    def negatives(self, labels: Tensor, drawn: dict[str, Tensor]) -> DrawnNegatives:
        """Return what boxes are compared with.

        Args:
            labels: int64 [N], of the boxes.
            drawn: positions in the lists of their classes, as `draw` returns them.
        """
        own = labels.cpu()
        rows = {}
        for side, positions in drawn.items():
            known = self.lists[side][own].long().gather(1, positions.clamp(min=0))  # [N, q]
            rows[side] = torch.where(positions == NO_WORD, NO_WORD, known)
        complete = torch.stack([(found != NO_WORD).any(dim=1) for found in rows.values()]).all(dim=0)
        means = {side: self._mean(found.to(self.words.device)) for side, found in rows.items()}
        return DrawnNegatives(
            self.anchors[labels.to(self.anchors.device)], **means, complete=complete.to(self.anchors.device)
        )

    def _mean(self, rows: Tensor) -> Tensor:
        """Return the mean [N, D] of the unit embeddings of rows [N, q], without `NO_WORD`."""
        valid = (rows != NO_WORD)[..., None]
        unit = F.normalize(self.words[rows.clamp(min=0)].float(), dim=2)  # [N, q, D]
        return (unit * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _draw(available: int, count: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(available, generator=generator)[:count]
    return F.pad(chosen, (0, count - len(chosen)), value=NO_WORD)
