"""From a feature map and boxes to region embeddings, with CLIP's last stage and attention pool."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn


class RegionEncoder:
    """Encodes regions with modules that belong to the backbone.

    The published state dicts hold `layer4` and `attnpool` under `backbone.` alone, so the ROI head
    borrows them through this object, which is no module and adds no keys.
    """

    def __init__(self, pooler: ROIPooler, last_stage: nn.Module, attention_pool: nn.Module | None) -> None:
        """Make an encoder; without attention pool the embedding is the spatial mean."""
        self.pooler = pooler
        self.last_stage = last_stage
        self.attention_pool = attention_pool

    def region_maps(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Pool boxes and run CLIP's `layer4`.

        Args:
            features: feature maps [N, C, H, W] the pooler was made for.
            boxes: for each of the N images, boxes [R_i, 4] in pixels of the network input.

        Returns:
            float [sum R_i, C', side / 2, side / 2].
        """
        return self.last_stage(self.pooler(list(features), list(boxes)))

    def embed(self, region_maps: Tensor) -> Tensor:
        """Map [R, C', h, w] to region embeddings [R, D], not normalised."""
        if self.attention_pool is None:
            return region_maps.mean(dim=(2, 3))
        return self.attention_pool(region_maps)
