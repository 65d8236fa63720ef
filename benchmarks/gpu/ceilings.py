"""Ceilings of the card: large matrix products, and copies."""

from __future__ import annotations

import torch
from timing import median_seconds

PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}
"""dtype of the factors, and whether float32 may be rounded to TF32."""


def measure_ceilings(device: str, side: int, repeats: int = 10) -> dict[str, float]:
    """Return `TFLOP/s of <precision>` for square matrix products, and `GB/s` of a copy, counting read and write."""
    found = {}
    for name, (dtype, tf32) in PRECISIONS.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        factor = torch.randn(side, side, device=device, dtype=dtype)
        seconds = median_seconds(lambda factor=factor: factor @ factor, repeats, device)  # type: ignore[misc]
        found[f"TFLOP/s of {name}"] = 2 * side**3 / seconds / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(32 * side**2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["GB/s"] = 2 * source.numel() / median_seconds(lambda: target.copy_(source), repeats, device) / 1e9
    return found
