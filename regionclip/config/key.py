"""One configuration key: all that its users need to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Limits:
    """The finite numbers that a key can have."""

    words: str
    """As an error says what was expected."""
    lowest: float
    highest: float = math.inf
    excludes_lowest: bool = False
    are_whole: bool = False

    def contain(self, value: Any) -> bool:
        """Return whether `value` is a finite number within the limits."""
        if isinstance(value, bool) or not isinstance(value, int if self.are_whole else int | float):
            return False
        if not math.isfinite(value):
            return False
        return self.lowest <= value <= self.highest and not (self.excludes_lowest and value == self.lowest)


PROBABILITY = Limits("a probability in [0, 1]", 0, 1)
FRACTION = Limits("a fraction in [0, 1]", 0, 1)
IOU = Limits("an IoU in [0, 1]", 0, 1)
EXPONENT = Limits("an exponent in [0, 1]", 0, 1)
FACTOR = Limits("a factor from 0", 0)
POSITIVE_FACTOR = Limits("a factor above 0", 0, excludes_lowest=True)
POSITIVE = Limits("a number above 0", 0, excludes_lowest=True)
TEMPERATURE = Limits("a temperature above 0", 0, excludes_lowest=True)
LOG_ODDS = Limits("log odds in [-20, 20]", -20, 20)
COUNT = Limits("a whole number, at least 1", 1, are_whole=True)
NOT_NEGATIVE = Limits("a number from 0", 0)


@dataclass(frozen=True)
class Key:
    """A configuration key beyond those of Detectron2."""

    name: str
    """Dotted, as command lines write it."""
    default: Any
    meaning: str
    """One line."""
    choices: tuple[Any, ...] = ()
    """All allowed values; empty allows any."""
    limits: Limits | None = None
    """Allowed numbers; a key whose default is None may also be that."""
    is_file: bool = False
    """Whether the value names a file, whose content decides results as the config does."""
    is_packed: bool = False
    """Whether the file belongs to a packed detector, which gets a copy of it."""
    group: str = ""
    """Heading of its section in docs/config.md."""


def section(group: str, *keys: Key) -> tuple[Key, ...]:
    """Return keys as those of one section."""
    return tuple(replace(key, group=group) for key in keys)
