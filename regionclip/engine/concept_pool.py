"""Concept pool from captions: nouns and their frequencies."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from regionclip.data.caption_loader import all_captions
from regionclip.data.image_text.nouns import Parser
from regionclip.data.image_text.pairs import PairSource
from regionclip.errors import user_error
from regionclip.files import atomic_write, read_lines
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)


class ConceptCounts:
    """Nouns in the captions of a source, stored as indices in arrays."""

    def __init__(self) -> None:
        """Create empty counts."""
        self.captions = 0
        self._numbers: dict[str, int] = {}
        self._mentions, self._caption_of = array("I"), array("I")

    def add(self, nouns: Iterable[str]) -> None:
        """Count the nouns and noun phrases of a caption, each once."""
        for noun in set(nouns):
            self._mentions.append(self._numbers.setdefault(noun, len(self._numbers)))
            self._caption_of.append(self.captions)
        self.captions += 1

    @property
    def concepts(self) -> dict[str, int]:
        """Number of captions with each noun or phrase, by descending frequency, then by name."""
        counts = np.bincount(np.frombuffer(self._mentions, np.uint32), minlength=len(self._numbers)).tolist()
        return dict(sorted(zip(self._numbers, counts, strict=True), key=lambda item: (-item[1], item[0])))

    def at_least(self, count: int) -> list[str]:
        """Return the concepts in at least `count` captions, the most frequent first."""
        return [name for name, found in self.concepts.items() if found >= count]

    def coverage(self, names: Iterable[str]) -> tuple[float, float]:
        """Return the fraction of captions with one of `names`, and the fraction of noun mentions in `names`."""
        numbers = [self._numbers[name] for name in names if name in self._numbers]
        is_one = np.isin(np.frombuffer(self._mentions, np.uint32), numbers)
        covered = len(np.unique(np.frombuffer(self._caption_of, np.uint32)[is_one]))
        return covered / max(self.captions, 1), int(is_one.sum()) / max(len(is_one), 1)


def count_concepts(sources: Sequence[PairSource], parser: Parser) -> ConceptCounts:
    """Parse all captions; unreadable ones are skipped, and their number is logged."""
    counts, unreadable = ConceptCounts(), 0
    for source in sources:
        for number in progress_bar(range(len(source)), unit="caption"):
            try:
                texts = all_captions(source.text(number))
            except (OSError, ValueError):
                unreadable += 1
                continue
            for text in texts:
                counts.add(parser(text))
    if unreadable:
        logger.warning("%d texts could not be read", unreadable)
    return counts


def write_names(path: str | Path, names: Sequence[str], counts: dict[str, int]) -> None:
    """Write one line per concept: name, comma, count."""
    with atomic_write(path) as file:
        file.write("".join(f"{name},{counts.get(name, 0)}\n" for name in names).encode())


def read_concept_names(path: str | Path) -> list[str]:
    """Return the names in a text file: the part of each line before the first comma.

    Raises:
        UserError: missing or empty file, or a duplicate name.
    """
    names = [line.split(",")[0].strip() for line in read_lines(path, "names")]
    names = [name for name in names if name]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or twice:
        actual = f"twice: {', '.join(twice[:5])}" if twice else "none"
        raise user_error(str(path), "names, each once", actual, "correct the file")
    return names
