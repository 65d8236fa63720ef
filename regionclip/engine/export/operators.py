"""Detector steps that are one operator in ONNX, as traceable torch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regionclip.ops import batched_nms, roi_align


@torch.library.custom_op("regionclip_export::pool_regions", mutates_args=())
def pool_regions(features: Tensor, boxes: Tensor, resolution: int, spatial_scale: float, sampling_ratio: int) -> Tensor:
    """Return RoIAlign [R, C, resolution, resolution] of boxes [R, 4] on the map [1, C, H, W]."""
    return roi_align(features, [boxes], resolution, spatial_scale, sampling_ratio, True).contiguous()


@pool_regions.register_fake
def _(features: Tensor, boxes: Tensor, resolution: int, spatial_scale: float, sampling_ratio: int) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], resolution, resolution)


@torch.library.custom_op("regionclip_export::top_rows", mutates_args=())
def top_rows(values: Tensor, limit: int) -> Tensor:
    """Return the indices [at most limit] of the largest of the values [P], best first."""
    return values.topk(min(limit, len(values))).indices


@top_rows.register_fake
def _(values: Tensor, limit: int) -> Tensor:
    return values.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("regionclip_export::best_boxes", mutates_args=())
def best_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    """Apply class-wise NMS; return class and row [M, 2] of the kept boxes, best first.

    Args:
        boxes: [R, 4], xyxy.
        scores: [C, R].
        iou_threshold: of two boxes with a larger IoU, the lower-scoring is dropped.
        score_threshold: boxes are dropped unless their score exceeds this.
        limit: maximum number of results over all classes.
    """
    row, category = (score_threshold < scores.T).nonzero(as_tuple=True)
    kept = batched_nms(boxes[row], scores[category, row], category, iou_threshold, limit)
    return torch.stack([category[kept], row[kept]], dim=1)


@best_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    return scores.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return the ONNX translation of each operator; needs onnxscript."""
    import onnxscript

    op: Any = onnxscript.opset18

    def pool(features: Any, boxes: Any, resolution: int, spatial_scale: float, sampling_ratio: int) -> Any:
        count = op.Shape(boxes, start=0, end=1)
        first_image = op.ConstantOfShape(count, value=_tensor([0]))
        return op.RoiAlign(
            features,
            boxes,
            first_image,
            coordinate_transformation_mode="half_pixel",
            output_height=resolution,
            output_width=resolution,
            sampling_ratio=sampling_ratio,
            spatial_scale=spatial_scale,
        )

    def top(values: Any, limit: int) -> Any:
        count = op.Min(op.Shape(values), op.Constant(value_ints=[limit]))
        _, places = op.TopK(values, count)
        return places

    def best(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, limit: int) -> Any:
        first = op.Constant(value_ints=[0])
        found = op.NonMaxSuppression(
            op.Unsqueeze(boxes, first),
            op.Unsqueeze(scores, first),
            op.Constant(value_ints=[limit]),  # no class has more boxes among the overall best
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )
        # [M, 3]: image, class and row.
        places = op.Slice(found, op.Constant(value_ints=[1]), op.Constant(value_ints=[3]), op.Constant(value_ints=[1]))
        order = top(op.GatherND(scores, places), limit)
        return op.Gather(places, order)

    operators = torch.ops.regionclip_export
    return {operators.pool_regions.default: pool, operators.top_rows.default: top, operators.best_boxes.default: best}


def _tensor(values: list[int]) -> Any:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(values, np.int64))
