"""Batch normalization with fixed statistics whose scale and shift are trained."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Normalizes by its running statistics in training too, and never updates them."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def fix_statistics(module: nn.Module) -> nn.Module:
    """Replace the batch normalization of a module, in place, and return the module; keys stay as they are.

    mmdetection's `norm_eval`: neither Detectron2's FrozenBN, whose scale and shift are fixed too, nor its BN.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d or isinstance(part, nn.SyncBatchNorm):
            part.__class__ = FixedStatisticsBatchNorm2d
    return module
