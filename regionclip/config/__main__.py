"""Print docs/config.md: `python -m regionclip.config > docs/config.md`."""

from collections.abc import Sequence

from regionclip.config.keys import DEAD_KEYS, FIXED_KEYS, KEYS, Key

HEADER = """# Configuration keys

Detectron2's own keys keep their meaning and defaults; the tables list what this package adds.
Values come from a YAML file (`--config-file`) and from `KEY VALUE` pairs at the end of a command
line. A finished config is checked once, before anything is built: every contradiction is reported
with its key, what was expected, what was found, and the fix.

This page is printed by `python -m regionclip.config`.
"""

FIXED_HEADER = """
## With one value

Keys of the transformer towers whose other values no published model has; setting one is an error.
"""

DEAD_HEADER = """
## Accepted without effect

Keys of upstream without effect here, and most of them without effect there: old files and command
lines merge, with a warning.
"""


def markdown_table(keys: Sequence[Key]) -> str:
    """Return a Markdown table of keys."""
    rows = [f"| `{key.name}` | `{key.default!r}` | {key.meaning} |" for key in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def config_page() -> str:
    """Return the whole page."""
    return "\n".join(
        [
            *(HEADER, markdown_table(KEYS)),
            *(FIXED_HEADER, markdown_table(FIXED_KEYS)),
            *(DEAD_HEADER, markdown_table(DEAD_KEYS)),
        ]
    )


if __name__ == "__main__":
    print(config_page())
