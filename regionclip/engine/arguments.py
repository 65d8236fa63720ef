"""The command line of the published scripts: options, and KEY VALUE pairs that change the config."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class DetectorArgumentParser(argparse.ArgumentParser):
    """A parser whose options may also stand between and behind the KEY VALUE pairs.

    The published scripts end with pairs, to which their users append: `bash train_rpn.sh coco48 --resume`.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[Any, list[str]]:
        """Parse a command line, that of the process unless given; see `argparse`."""
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._options_first(given), namespace)

    def _options_first(self, given: list[str]) -> list[str]:
        """Return the arguments with all options before the first KEY."""
        options: list[str] = []
        pairs: list[str] = []
        start = 0
        while start < len(given):
            is_option = given[start].startswith("-")
            end = start + 1 + (self._values_of(given[start]) if is_option else 1)
            (options if is_option else pairs).extend(given[start:end])
            start = end
        return options + pairs

    def _values_of(self, option: str) -> int:
        """Return how many arguments behind `option` are its values; argparse reports unknown options."""
        if "=" in option:
            return 0
        exact = self._option_string_actions.get(option)
        matches = {
            id(action): action for name, action in self._option_string_actions.items() if name.startswith(option)
        }
        action = exact or (next(iter(matches.values())) if len(matches) == 1 else None)
        return 1 if action is not None and action.nargs is None else 0


def positive(text: str) -> int:
    """Return a number above 0; argparse reports any other."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {number}")
    return number
