"""Encoding of an image by a two-stage detector: feature maps, proposals, and region embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from detectron2.structures import Instances
from torch import Tensor

from regionclip.errors import user_error
from regionclip.modeling.inference.early_end import LazyRegions
from regionclip.modeling.postprocess import DetectionSelector, ProbabilityOnly

FeatureMaps = dict[str, Tensor]
"""Feature maps [N, C, H, W] by name."""


def each_image(maps: FeatureMaps) -> Iterator[FeatureMaps]:
    """Yield the feature maps [1, C, H, W] of each image of a batch [N, C, H, W]."""
    for parts in zip(*(part.split(1) for part in maps.values()), strict=True):
        yield dict(zip(maps, parts, strict=True))


def scorable_proposals(proposals: Instances, selector: DetectionSelector, key: str) -> Instances:
    """Return the proposals that can have a score.

    Raises:
        UserError: the score depends on an objectness that the proposals lack; `key` False leaves it out.
    """
    require_objectness(proposals, selector, key)
    if proposals.has("objectness_logits"):
        return proposals[selector.fusion.scorable(proposals.objectness_logits)]
    return proposals


def require_objectness(proposals: Instances, selector: DetectionSelector, key: str) -> None:
    """Raise a `UserError` if the score depends on an objectness that proposals lack; `key` False leaves it out."""
    lacks = len(proposals) and not proposals.has("objectness_logits")
    if lacks and not isinstance(selector.fusion, ProbabilityOnly):
        raise user_error(key, "False with proposals without objectness", "True", f"add {key} False")


class RegionEncoding:
    """Feature maps of one image and its regions, which are proposed on first access."""

    def __init__(
        self,
        maps: FeatureMaps,
        propose: Callable[[], Instances],
        make_regions: Callable[[FeatureMaps, Instances], LazyRegions],
        image: Tensor | None = None,
    ) -> None:
        """Store the feature maps [1, C, H, W] of an image.

        Args:
            maps: input of RoIAlign.
            propose: returns the proposals.
            make_regions: turns maps and proposals into lazily encoded regions.
            image: network input, uint8 [3, H, W], for detectors that cut crops out of it.
        """
        self.maps, self.image = maps, image
        self._propose, self._make_regions = propose, make_regions

    @cached_property
    def proposals(self) -> Instances:
        """The detector's own proposals."""
        return self._propose()

    @cached_property
    def regions(self) -> LazyRegions:
        """The scorable proposals, encoded as far as detection needed so far."""
        return self._make_regions(self.maps, self.proposals)

    @property
    def encoded_regions(self) -> int:
        """Number of proposals encoded so far."""
        return self.regions.encoded if "regions" in self.__dict__ else 0
