"""Region encoder for inference whose first `layer4` convolutions run once on the feature map, before RoIAlign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.folding import FoldedBottleneck
from regionclip.modeling.heads.region_encoder import RegionEncoder
from regionclip.ops import RoIAlign, roi_align
from regionclip.ops.fused_convolution import add_convolved


class HoistedConvolutionsEncoder(RegionEncoder):
    """Region encoder with a folded `layer4` that shares computation among overlapping regions.

    The first 1x1 convolution and that of the shortcut are linear, as are RoIAlign and average pooling, so they
    commute up to rounding. Only the bias is added after pooling, where samples outside the map are zero.
    Both may have another dtype than the rest of `layer4`.
    """

    def encoder_of_map(self, feature_map: Tensor, regions: int) -> Callable[[Tensor], Tensor]:
        """Return a function from RoIs [R', 5] to maps; without hoisting if there are few regions."""
        first, *others = self._blocks
        feature_map = feature_map.to(first.conv1.weight.dtype)
        (layer,) = self.pooler.level_poolers
        if not self._pays(feature_map, regions, layer) or first.shortcut is None:
            return super().encoder_of_map(feature_map, regions)
        dtype = first.conv3.weight.dtype
        inner_map, shortcut_map = (
            F.conv2d(feature_map, moved.weight).to(dtype) for moved in (first.conv1, first.shortcut)
        )
        inner_bias = _constant(first.conv1).to(dtype)[:, None, None]
        bias = _constant(first.conv3) + _constant(first.shortcut).to(dtype)

        def pool_and_encode(rois: Tensor) -> Tensor:
            inner = layer(inner_map, rois).add_(inner_bias).relu_()  # [R', C, side, side]
            inner = first.pool(first.convolution_relu3x3(inner))
            shortcut = _pool_pairs(layer, shortcut_map, rois)  # [R', 4 C, side / 2, side / 2]
            maps = add_convolved(shortcut, inner, first.conv3.weight, bias)
            for block in others:
                maps = block(maps)
            return maps

        return pool_and_encode

    def region_maps(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Apply RoIAlign and CLIP's `layer4`; the result is float32."""
        dtype = self._blocks[0].conv1.weight.dtype
        return super().region_maps([feature_map.to(dtype) for feature_map in features], boxes).float()

    def embed(self, region_maps: Tensor) -> Tensor:
        """Map [R, C', h, w] to region embeddings [R, D] in float32, not normalized."""
        return super().embed(region_maps.float())

    @property
    def _blocks(self) -> list[FoldedBottleneck]:
        assert isinstance(self.last_stage, nn.Sequential)
        return list(self.last_stage)  # type: ignore[arg-type]

    def _pays(self, feature_map: Tensor, regions: int, layer: RoIAlign) -> bool:
        """Return whether convolving the feature map is cheaper than convolving the cells of all regions."""
        side = layer.output_size[0]
        return feature_map.shape[0] * feature_map[0, 0].numel() < regions * side**2 / 2


def _pool_pairs(layer: RoIAlign, feature_map: Tensor, rois: Tensor) -> Tensor:
    """Return 2x2 average-pooled RoIAlign [R, C, side / 2, side / 2], computed in one step."""
    height, width = layer.output_size
    if height % 2 or width % 2:
        return F.avg_pool2d(layer(feature_map, rois), 2)
    ratio = 2 * layer.sampling_ratio if layer.sampling_ratio > 0 else -2
    return roi_align(feature_map, rois, (height // 2, width // 2), layer.spatial_scale, ratio, layer.aligned)


def _constant(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
