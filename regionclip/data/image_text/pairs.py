"""Image-text pairs by number, in memory or in large files."""

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
"""Keys of JSON texts, and columns of tables, that hold words."""


@dataclass(frozen=True)
class Pair:
    """One image with its text, not decoded."""

    key: str
    """Unique name of the sample within its source."""
    image: bytes | Path
    text: str
    """A caption, or a JSON object with `captions` or `tags`."""


class PairSource(ABC):
    """Pairs by number, in groups that lie together on disk."""

    group_sizes: list[int]
    """Pairs in each group: a shard, or all."""

    @abstractmethod
    def __getitem__(self, number: int) -> Pair:
        """Read a pair; raises `OSError` or `ValueError` where it is damaged."""

    def text(self, number: int) -> str:
        """Read the text of a pair alone."""
        return self[number].text

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(self.group_sizes)


class PathPairs(PairSource):
    """Pairs whose images are files."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        """Make a source of pairs, kept as bytes."""
        entries = [(pair.key, str(pair.image), pair.text) for pair in pairs]
        self.entries = DatasetFromList(entries, copy=False) if entries else entries
        self.group_sizes = [len(entries)]

    def __getitem__(self, number: int) -> Pair:
        """Return a pair."""
        key, path, text = self.entries[number]
        return Pair(key, Path(path), text)


class FilePairs(PairSource):
    """Pairs that lie in large files, found by an index."""

    def __init__(self, files: Sequence[Path], index: Callable[[Path], Any]) -> None:
        """Make a source; `index` lists where the pairs of a file lie."""
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
    """Return a JSON object or list, and nothing for any other text."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict | list) else None
