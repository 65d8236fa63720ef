"""The encoding of an image by a two-stage detector: feature maps, proposals, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from detectron2.structures import Instances
from torch import Tensor

from regionclip.modeling.inference.early_end import LazyRegions

FeatureMaps = dict[str, Tensor]
"""Maps [N, C, H, W] by their names."""


def each_image(maps: FeatureMaps) -> Iterator[FeatureMaps]:
    """Yield the maps [1, C, H, W] of each image of a batch [N, C, H, W]."""
    for parts in zip(*(part.split(1) for part in maps.values()), strict=True):
        yield dict(zip(maps, parts, strict=True))


class RegionEncoding:
    """Feature maps of one image, and its regions; those are proposed when they are first asked for."""

    def __init__(
        self,
        maps: FeatureMaps,
        propose: Callable[[], Instances],
        make_regions: Callable[[FeatureMaps, Instances], LazyRegions],
    ) -> None:
        """Take the feature maps [1, C, H, W] of an image.

        Args:
            maps: are pooled from.
            propose: gives the proposals.
            make_regions: turns maps and proposals into regions that are encoded when they are asked for.
        """
        self.maps = maps
        self._propose, self._make_regions = propose, make_regions

    @cached_property
    def proposals(self) -> Instances:
        """The boxes that the detector finds by itself."""
        return self._propose()

    @cached_property
    def regions(self) -> LazyRegions:
        """The proposals that can have a score, of which as many are encoded as detection took until now."""
        return self._make_regions(self.maps, self.proposals)

    @property
    def encoded_regions(self) -> int:
        """Number of the proposals that were encoded until now."""
        return self.regions.encoded if "regions" in self.__dict__ else 0
