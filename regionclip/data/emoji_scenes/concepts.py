"""The objects that exist in the synthetic dataset: a list of names, checked in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

BASE, NOVEL = "base", "novel"
"""Splits: base concepts have boxes in training, novel ones are named in captions only."""


@dataclass(frozen=True)
class Concept:
    """An object that can be drawn."""

    number: int
    """Place in the list; category ids are one more."""
    code: str
    """Unicode code points, which name the files of its drawings."""
    name: str
    group: str
    """What it is among, such as `food-fruit`."""
    split: str
    mirrored: bool
    """Whether its mirror image is the same object."""

    @property
    def rarity(self) -> float:
        """From 0, the most frequent, to 1, the rarest, in an order without meaning."""
        digest = hashlib.sha256(f"frequency {self.code}".encode()).digest()
        return int.from_bytes(digest[:4]) / 2**32


@lru_cache(maxsize=1)
def read_concepts() -> tuple[Concept, ...]:
    """Return all concepts: objects, creatures, people and faces that three families of emoji draw.

    Chosen from Unicode's emoji without flags, keycaps, letters, arrows and abstract signs, clock faces, and
    without variants by gender, skin tone and hair; named as in Unicode's CLDR. A quarter of each group is novel.
    """
    text = files("regionclip.data.emoji_scenes").joinpath("concepts.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple(
        Concept(number, code, name, group, split, mirrored == "yes")
        for number, (code, name, group, split, mirrored) in enumerate(rows)
    )
