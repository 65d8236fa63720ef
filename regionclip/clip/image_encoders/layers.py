"""Layers shared by the image encoders."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them (keys `fc1`, `fc2`)."""

    def __init__(self, width: int, hidden: int) -> None:
        """Create an MLP from `width` to `hidden` and back."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.fc2(F.gelu(self.fc1(x)))


def channels_last(x: Tensor) -> Tensor:
    """Return a map [N, C, H, W] as [N, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """Return a map [N, H, W, C] as [N, C, H, W]."""
    return x.permute(0, 3, 1, 2)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad a map [N, C, H, W] with zeros, right and bottom, to a multiple of `multiple`."""
    height, width = x.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    return F.pad(x, padding) if any(padding) else x
