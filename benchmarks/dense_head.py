#!/usr/bin/env python3
"""Train or evaluate with `layer4` applied once to the map of the image, regions pooled from its output (rejected).

    python benchmarks/dense_head.py --config-file CONFIG [--eval-only] [KEY VALUE ...]     # as tools/train_net.py

The exact head applies `layer4` once per region. docs/performance.md compares the accuracy of detectors whose weights
were pretrained through either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest.mock import patch

from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor

from regionclip.cli.train_net import main
from regionclip.modeling.heads import region_encoder
from regionclip.modeling.inference import prepare
from regionclip.ops import roi_align


class DenseRegionEncoder(region_encoder.RegionEncoder):
    """Pools regions from the output of `layer4`, whose stride is twice that of its input."""

    def encoder_of_map(self, feature_map: Tensor, regions: int) -> Callable[[Tensor], Tensor]:
        """Return a function from RoIs [R', 5] to maps [R', C', side / 2, side / 2]."""
        (level,) = self.pooler.level_poolers
        weight = next(self.last_stage.parameters())
        dense = self.last_stage(feature_map.to(weight.dtype)).float()
        side, scale = level.output_size[0] // 2, level.spatial_scale / 2
        return lambda rois: roi_align(dense, rois, (side, side), scale, level.sampling_ratio, level.aligned)

    def region_maps(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return maps [sum R_i, C', side / 2, side / 2] of the boxes of each image."""
        (feature_map,) = features
        rois = convert_boxes_to_pooler_format(list(boxes))
        return self.encoder_of_map(feature_map, len(rois))(rois)


if __name__ == "__main__":
    with (
        patch.object(region_encoder, "RegionEncoder", DenseRegionEncoder),
        patch.object(prepare, "HoistedConvolutionsEncoder", DenseRegionEncoder),
    ):
        main()
