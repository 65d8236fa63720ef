"""One configuration key: all that its users need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


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
    is_file: bool = False
    """Whether the value names a file, whose content decides results as the config does."""
    is_packed: bool = False
    """Whether the file belongs to a packed detector, which gets a copy of it."""
    group: str = ""
    """Heading of its section in docs/config.md."""


def section(group: str, *keys: Key) -> tuple[Key, ...]:
    """Return keys as those of one section."""
    return tuple(replace(key, group=group) for key in keys)
