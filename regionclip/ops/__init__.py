"""Operators of the detector, with torchvision's signatures, independent of Detectron2.

They run natively (C++ and CUDA, as `torch.ops.regionclip.*`) if the extension is built, else in
PyTorch; the environment variable REGIONCLIP_OPS forces `native`, `pytorch`, `torchvision` or
`reference`.
"""

from regionclip.ops.implementation import IMPLEMENTATIONS, implementation, native_problem, use_implementation
from regionclip.ops.nms import batched_nms, nms
from regionclip.ops.roi_align import RoIAlign, roi_align
from regionclip.ops.soft_nms import soft_nms
from regionclip.ops.winograd import WinogradConv2d, suits_winograd

__all__ = [
    "IMPLEMENTATIONS",
    "RoIAlign",
    "WinogradConv2d",
    "batched_nms",
    "implementation",
    "native_problem",
    "nms",
    "roi_align",
    "soft_nms",
    "suits_winograd",
    "use_implementation",
]
