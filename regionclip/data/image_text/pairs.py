"""Image-text pairs by index, in memory or in large files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList

CAPTION_KEYS = ("caption", "captions", "text", "tags")
"""JSON keys and table columns that hold captions or tags."""


@dataclass(frozen=True)
class Pair:
    """One image, not decoded, with its text."""

    key: str
    """Unique name of the sample within its source."""
    image: bytes | Path
    text: str
    """A caption, or a JSON object with `captions` or `tags`."""


class PairSource(ABC):
    """Pairs by index, in groups that are stored together on disk."""

    group_sizes: list[int]
    """Number of pairs in each group: a shard, or all."""

    @abstractmethod
    def __getitem__(self, number: int) -> Pair:
        """Read a pair; raises `OSError` or `ValueError` if it is damaged."""

    def text(self, number: int) -> str:
        """Read only the text of a pair."""
        return self[number].text

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(self.group_sizes)


class PathPairs(PairSource):
    """Pairs whose images are separate files."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        """Create a source of pairs, stored as bytes."""
        entries = [(pair.key, str(pair.image), pair.text) for pair in pairs]
        self.entries = DatasetFromList(entries, copy=False) if entries else entries
        self.group_sizes = [len(entries)]

    def __getitem__(self, number: int) -> Pair:
        """Return a pair."""
        key, path, text = self.entries[number]
        return Pair(key, Path(path), text)


class FilePairs(PairSource):
    """Pairs stored in large files, located by an index."""

    def __init__(self, files: Sequence[Path], index: Callable[[Path], Any]) -> None:
        """Create a source; `index` returns the positions of the pairs in a file."""
        self.files = list(files)
        self.entries = [index(path) for path in self.files]
        self.group_sizes = [len(entries) for entries in self.entries]
        self._ends = np.cumsum(self.group_sizes)

    def locate(self, number: int) -> tuple[Path, Any]:
        """Return the file and the index entry of a pair."""
        group = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        return self.files[group], self.entries[group][number - first]


def read_json(text: str) -> Any:
    """Return a JSON object or list, and None for any other text."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict | list) else None
