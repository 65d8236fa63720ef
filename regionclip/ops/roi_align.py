"""RoIAlign (He et al., 2017), with torchvision's signature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from regionclip.ops.implementation import implementation
from regionclip.ops.sampling import Pooling


def roi_align(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Pool regions of feature maps to a fixed size by averaging bilinear samples.

    A region with a non-finite coordinate pools to zeros, as do samples outside the map.

    Args:
        features: float [N, C, H, W] of any floating dtype, in either memory format.
        rois: float [R, 5]: batch index, x1, y1, x2, y2 in image pixels; or for each of the N images
            boxes [R_i, 4].
        output_size: height and width of the result, or one number for both; 1 to 4096.
        spatial_scale: map cells per image pixel.
        sampling_ratio: samples per bin along each axis; 0 or -1 takes one per cell, and -k one per cell in each of
            the bin's k parts: the average of k x k bins of a finer result.
        aligned: shift by half a pixel, which centers the samples (Detectron2's RoIAlignV2).
        memory_format: of the result; that of `features` by default.

    Returns:
        [R, C, height, width] in the dtype of `features`.

    Raises:
        ValueError: a wrong shape or, except on a GPU, a batch index out of range; on a GPU such a
            region pools to NaN.
    """
    height, width = _pair(output_size)
    table = _as_table(rois, features)
    _check(features, table, height, width, sampling_ratio)
    pooling = Pooling((int(height), int(width)), float(spatial_scale), int(sampling_ratio), bool(aligned))
    if memory_format is None:
        # A map with one channel or cell has both memory formats; the result is then contiguous.
        is_channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return implementation(features.device).roi_align(features, table, pooling, memory_format)


class RoIAlign(nn.Module):
    """`roi_align` with fixed options; replaces Detectron2's `ROIAlign`."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        """Create a layer; arguments as for `roi_align`."""
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool RoIs [R, 5] of features [N, C, H, W]."""
        return roi_align(features, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


def _as_table(rois: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    # Half-precision coordinates of a large image would be wrong by pixels.
    dtype = torch.promote_types(features.dtype, torch.float32) if features.is_floating_point() else torch.float32
    if isinstance(rois, Tensor):
        return rois.detach().to(dtype)
    rows = [
        torch.cat([boxes.new_full((len(boxes), 1), i).to(dtype), boxes.to(dtype)], 1) for i, boxes in enumerate(rois)
    ]
    return torch.cat(rows) if rows else features.new_zeros(0, 5, dtype=dtype)


def _check(features: Tensor, rois: Tensor, height: int, width: int, sampling_ratio: int) -> None:
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"roi_align: expected float features [N, C, H, W], got {features.dtype} {list(features.shape)}"
        )
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"roi_align: expected rois [R, 5] (image, x1, y1, x2, y2), got {list(rois.shape)}")
    if not (1 <= height <= 4096 and 1 <= width <= 4096):
        raise ValueError(f"roi_align: expected an output size from 1 to 4096, got {height} x {width}")
    if not -4096 <= sampling_ratio <= 4096:
        raise ValueError(f"roi_align: expected a sampling ratio from -4096 to 4096, got {sampling_ratio}")
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return  # reading values would synchronize with the device; the native operator checks on a CPU
    images = rois[:, 0]
    if not bool(((images >= 0) & (images < len(features))).all()):
        raise ValueError(f"roi_align: expected image numbers from 0 to {len(features) - 1} in column 0 of rois")
