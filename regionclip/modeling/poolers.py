"""Detectron2's ROIPooler over feature levels, with this package's RoIAlign."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler

from regionclip.ops import RoIAlign


def build_pooler(node: CfgNode, strides: Sequence[int]) -> ROIPooler:
    """Return the ROIPooler that MODEL.ROI_BOX_HEAD or MODEL.ROI_MASK_HEAD describes.

    Args:
        node: POOLER_RESOLUTION, POOLER_SAMPLING_RATIO, POOLER_TYPE.
        strides: image pixels per cell of each feature map.
    """
    scales = [1.0 / stride for stride in strides]
    return use_own_roi_align(ROIPooler(node.POOLER_RESOLUTION, scales, node.POOLER_SAMPLING_RATIO, node.POOLER_TYPE))


def use_own_roi_align(pooler: ROIPooler) -> ROIPooler:
    """Replace Detectron2's ROIAlign layers by this package's; other pooling types are kept."""
    for level, layer in enumerate(pooler.level_poolers):
        if isinstance(layer, ROIAlign):
            pooler.level_poolers[level] = RoIAlign(
                layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
            )
    return pooler
