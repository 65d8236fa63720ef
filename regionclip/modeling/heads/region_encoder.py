"""Region embeddings of boxes on a feature map, with CLIP's last stage and attention pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from regionclip.clip.resnet import ModifiedResNet

REGIONS_AT_ONCE = 64
"""Chunk size of region encoding at inference: the feature maps of a chunk fit in memory that is reused."""


EncodeBoxes = Callable[[Boxes], Tensor]
"""Maps boxes [C, 4] of one image, in pixels of the network input, to region embeddings [C, D], not normalized."""


class RegionEncoder:
    """Region encoder whose modules belong to the backbone.

    The published state dicts hold `layer4` and `attnpool` under `backbone.` only, so the RoI head
    shares them through this object, which is no `nn.Module` and adds no keys.
    """

    def __init__(self, pooler: ROIPooler, last_stage: nn.Module, attention_pool: nn.Module | None) -> None:
        """Create an encoder; without an attention pool the embedding is the spatial mean."""
        self.pooler = pooler
        self.last_stage = last_stage
        self.attention_pool = attention_pool

    def encode(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings, not normalized.

        Without gradients the regions are processed in chunks, which bounds the memory.

        Args:
            features: the single feature map [N, C, H, W] that the pooler was built for.
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
        """Return a function that maps RoIs [R', 5] on a feature map [N, C, H, W] to maps as `region_maps` does.

        Args:
            feature_map: input of RoIAlign.
            regions: total number of regions.
        """
        (level,) = self.pooler.level_poolers
        return lambda rois: self.last_stage(level(feature_map, rois))

    def region_maps(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Apply RoIAlign and CLIP's `layer4`; arguments as for `encode`.

        Returns:
            float [sum R_i, C', side / 2, side / 2].
        """
        return self.last_stage(self.pooler(list(features), list(boxes)))

    def embed(self, region_maps: Tensor) -> Tensor:
        """Map [R, C', h, w] to region embeddings [R, D], not normalized."""
        if self.attention_pool is None:
            return region_maps.mean(dim=(2, 3))
        return self.attention_pool(region_maps)


class BorrowsLastStage:
    """C4 head that shares CLIP's last stage and attention pool, which the image encoder owns."""

    in_features: list[str]
    """Name of the single feature map to pool from."""
    pooler: ROIPooler
    region_encoder: RegionEncoder | None = None

    def borrow(self, image_encoder: ModifiedResNet) -> None:
        """Use `layer4` and the attention pool of the backbone's image encoder."""
        self.region_encoder = RegionEncoder(self.pooler, image_encoder.stages["res5"], image_encoder.attnpool)

    @property
    def encoder(self) -> RegionEncoder:
        """The region encoder; raises `RuntimeError` before `borrow` is called."""
        if self.region_encoder is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} has no image encoder yet: build it with regionclip.modeling.build.build_model(cfg)"
            )
        return self.region_encoder

    def encode(self, features: dict[str, Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the region embeddings [R, D] of the boxes of each image, not normalized."""
        return self.encoder.encode(self.pooled_features(features), boxes)

    def encoder_of_image(self, features: dict[str, Tensor], regions: int) -> EncodeBoxes:
        """Return a function that encodes chunks of the boxes of one image.

        Args:
            features: feature maps [1, C, H, W] of the image.
            regions: total number of boxes.
        """
        (feature_map,) = self.pooled_features(features)
        pool_and_encode = self.encoder.encoder_of_map(feature_map, regions)
        return lambda boxes: self.encoder.embed(pool_and_encode(convert_boxes_to_pooler_format([boxes])))

    def pooled_features(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the feature maps that the head pools from."""
        return [features[name] for name in self.in_features]
