"""Class embeddings of the config, and the prior of novel classes by their names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode

from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import parse_names
from regionclip.methods.cora.prematching import NovelPrior
from regionclip.modeling.configured_classes import ConfiguredClasses

logger = logging.getLogger(__name__)


def build_pseudo_classes(cfg: CfgNode) -> ConfiguredClasses | None:
    """Return the classes of MODEL.CORA.PSEUDO_EMBEDDINGS; None if the config has no pseudo boxes."""
    if not cfg.MODEL.CORA.PSEUDO_BOXES:
        return None
    vocabulary = Vocabulary.from_file(cfg.MODEL.CORA.PSEUDO_EMBEDDINGS)
    return ConfiguredClasses(vocabulary.class_embeddings(), vocabulary.names)


@dataclass
class NovelClasses:
    """Names whose probability is multiplied in anchor pre-matching (MODEL.CORA.NOVEL_CLASSES, NOVEL_FACTOR)."""

    names: frozenset[str]
    """As CLIP reads them."""
    factor: float
    _said: set[tuple[str, ...]] = field(default_factory=set)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> NovelClasses:
        """Return the names of a class list, of a file, or separated by commas."""
        names = parse_names(cfg.MODEL.CORA.NOVEL_CLASSES)
        return cls(frozenset(map(same_to_clip, names)), cfg.MODEL.CORA.NOVEL_FACTOR)

    def prior(self, names: Sequence[str], device: torch.device) -> NovelPrior | None:
        """Return the prior over K classes by name; None if the factor is 1, or none of the names is novel."""
        if self.factor == 1.0:
            return None
        novel = [same_to_clip(name) in self.names for name in names]
        if any(novel):
            return NovelPrior(torch.tensor(novel, device=device), self.factor)
        if tuple(names) not in self._said:
            self._said.add(tuple(names))
            logger.warning(
                "MODEL.CORA.NOVEL_FACTOR %g has no effect: none of the %d class names is in NOVEL_CLASSES",
                self.factor,
                len(names),
            )
        return None
