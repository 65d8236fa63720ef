"""Class names of LP-OVOD: those that have prototypes, and those of embedding files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from detectron2.config import CfgNode

from regionclip.clip.prompts import same_to_clip
from regionclip.data.class_lists import parse_names
from regionclip.errors import user_error

TEACH = "teach it: regionclip lp-ovod learn --words ... --images folder/"


@dataclass(frozen=True)
class TaughtNames:
    """Names of the classes that a detector has prototypes of, or will have."""

    base: tuple[str, ...]
    novel: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TaughtNames:
        """Return the names of BASE_CLASSES and NOVEL_CLASSES."""
        names = cfg.MODEL.LP_OVOD
        base, novel = (parse_names(text, synonyms=False) for text in (names.BASE_CLASSES, names.NOVEL_CLASSES))
        return cls(tuple(base), tuple(novel))

    @property
    def all(self) -> tuple[str, ...]:
        """Base, then novel names."""
        return self.base + self.novel

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {same_to_clip(name): row for row, name in enumerate(self.all)}

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Return the names that are not taught."""
        return [name for name in names if same_to_clip(name) not in self._rows]

    def require(self, names: Sequence[str]) -> None:
        """Raise a `UserError` that says how to teach the unknown names."""
        if unknown := self.unknown(names):
            known = ", ".join(self.all[:5]) + (f" and {len(self.all) - 5} more" if len(self.all) > 5 else "")
            raise user_error("class names", f"names that the detector was taught: {known}", ", ".join(unknown), TEACH)

    def rows(self, names: Sequence[str]) -> list[int]:
        """Return the row of each name among all, base names first.

        Raises:
            UserError: an unknown name.
        """
        self.require(names)
        return [self._rows[same_to_clip(name)] for name in names]
