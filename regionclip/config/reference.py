"""The reference of configuration keys: one key in words, and all of them as docs/config.md."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import groupby

from regionclip.config.key import Key
from regionclip.config.keys import KEYS, all_keys
from regionclip.method import methods

HEADER = """# Configuration keys

Detectron2's own keys keep their meaning and defaults; the tables list what this package adds, and what each method
adds to that. Values come from a YAML file (`--config-file`) and from `KEY VALUE` pairs at the end of a command line. A
finished config is checked once, before anything is built: every contradiction is reported with its key, what was
expected, what was found, and the fix.

`regionclip config KEY` prints one key. This page is printed by `python -m regionclip.config`.
"""

NEAREST = 3
"""Names that a misspelt key is answered with."""


def config_page() -> str:
    """Return docs/config.md: the keys of all methods, then those of each method, by sections."""
    parts = [HEADER, *_sections(KEYS)]
    for method in methods():
        parts += [f"## Keys of {method.title}\n", *_sections((*method.keys, *method.dead_keys), level=3)]
    return "\n".join(parts)


def describe(key: Key) -> str:
    """Return a key with its default, its meaning and its allowed values, a line each."""
    lines = [key.name, f"  default: {key.default!r}", f"  meaning: {key.meaning}"]
    if key.choices:
        lines.append(f"  allowed: {', '.join(map(repr, key.choices))}")
    if key.limits:
        lines.append(f"  allowed: {key.limits.words}")
    if key.is_file:
        lines.append("  a file: relative to the working directory, the config, or the repository")
    return "\n".join(lines)


def find_keys(name: str) -> list[Key]:
    """Return the key of a name, or all under a node; without either, those whose last part is the name."""
    wanted = name.upper()
    keys = all_keys()
    exact = [key for key in keys if key.name == wanted or key.name.startswith(f"{wanted}.")]
    return exact or [key for key in keys if key.name.rsplit(".", 1)[-1] == wanted]


def nearest_names(name: str, known: Sequence[str]) -> list[str]:
    """Return the known names that a misspelt one can mean, the nearest first."""
    last_part = {other: other.rsplit(".", 1)[-1] for other in known}
    ends = get_close_matches(name.rsplit(".", 1)[-1].upper(), set(last_part.values()), NEAREST, cutoff=0.75)
    by_end = [other for end in ends for other, part in last_part.items() if part == end]
    whole = get_close_matches(name.upper(), known, NEAREST, cutoff=0.8)
    return list(dict.fromkeys([*whole, *by_end]))[:NEAREST]


def _sections(keys: Sequence[Key], level: int = 2) -> list[str]:
    parts = []
    for group, members in groupby(keys, key=lambda key: key.group):
        parts += [f"{'#' * level} {group}\n", _table(list(members)), ""]
    return parts


def _table(keys: Sequence[Key]) -> str:
    rows = [f"| `{key.name}` | `{key.default!r}` | {key.meaning} |" for key in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])
