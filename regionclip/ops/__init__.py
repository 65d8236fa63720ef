"""The detector's operators, with torchvision's signatures; this package knows nothing of Detectron2."""

from torchvision.ops import nms, roi_align

from regionclip.ops.nms import batched_nms
from regionclip.ops.soft_nms import soft_nms

__all__ = ["batched_nms", "nms", "roi_align", "soft_nms"]
