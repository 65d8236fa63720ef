"""From a feature map and boxes to region embeddings, with CLIP's last stage and attention pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from regionclip.clip.resnet import ModifiedResNet

REGIONS_AT_ONCE = 64
"""Regions that are encoded together outside of training: their maps stay in memory that is in use already."""


EncodeBoxes = Callable[[Boxes], Tensor]
"""From boxes [C, 4] of one image, in pixels of the network input, to region embeddings [C, D], not normalized."""


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

    def encode(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the embeddings of regions, not normalised.

        Outside of training the regions go through in portions, which bounds the memory.

        Args:
            features: the feature map [N, C, H, W] the pooler was made for, alone.
            boxes: for each of the N images, boxes [R_i, 4] in pixels of the network input.

        Returns:
            float [sum R_i, D].
        """
        if torch.is_grad_enabled():
            return self.embed(self.region_maps(features, boxes))
        (feature_map,) = features
        rois = convert_boxes_to_pooler_format(list(boxes))  # [R, 5]
        pool_and_encode = self.encoder_of_map(feature_map, len(rois))
        return torch.cat([self.embed(pool_and_encode(part)) for part in rois.split(REGIONS_AT_ONCE)])

    def encoder_of_map(self, feature_map: Tensor, regions: int) -> Callable[[Tensor], Tensor]:
        """Return what maps rois [R', 5] of a feature map [N, C, H, W] to maps as `region_maps` does.

        Args:
            feature_map: is pooled from.
            regions: how many there will be in all.
        """
        (level,) = self.pooler.level_poolers
        return lambda rois: self.last_stage(level(feature_map, rois))

    def region_maps(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Pool boxes and run CLIP's `layer4`; arguments as for `encode`.

        Returns:
            float [sum R_i, C', side / 2, side / 2].
        """
        return self.last_stage(self.pooler(list(features), list(boxes)))

    def embed(self, region_maps: Tensor) -> Tensor:
        """Map [R, C', h, w] to region embeddings [R, D], not normalised."""
        if self.attention_pool is None:
            return region_maps.mean(dim=(2, 3))
        return self.attention_pool(region_maps)


class BorrowsLastStage:
    """A C4 head on CLIP's last stage and attention pool, which stay with the tower."""

    in_features: list[str]
    """Name of the one feature map to pool from."""
    pooler: ROIPooler
    region_encoder: RegionEncoder | None = None

    def borrow(self, tower: ModifiedResNet) -> None:
        """Use `layer4` and the attention pool of the image tower that the backbone owns."""
        self.region_encoder = RegionEncoder(self.pooler, tower.stages["res5"], tower.attnpool)

    @property
    def encoder(self) -> RegionEncoder:
        """The region encoder; raises `RuntimeError` before `borrow` was called."""
        if self.region_encoder is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} has no CLIP tower yet: build it with regionclip.modeling.build_model(cfg)")
        return self.region_encoder

    def encode(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings [R, D] of the boxes of each image, not normalised."""
        return self.encoder.encode(self.pooled_features(features), boxes)

    def encoder_of_image(self, features: dict[str, Tensor], regions: int) -> EncodeBoxes:
        """Return what encodes chunks of the boxes of one image.

        Args:
            features: maps [1, C, H, W] of the image.
            regions: how many boxes there will be in all.
        """
        (feature_map,) = self.pooled_features(features)
        pool_and_encode = self.encoder.encoder_of_map(feature_map, regions)
        return lambda boxes: self.encoder.embed(pool_and_encode(convert_boxes_to_pooler_format([boxes])))

    def pooled_features(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the maps that the head pools from."""
        return [features[name] for name in self.in_features]
