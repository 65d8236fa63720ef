#!/usr/bin/env python3
"""Time the convolutions of `layer4` in int8 against this package's in float32, in one run.

    python benchmarks/quantized.py [--regions 64] [--repeats 9] [--json]

int8 uses torch's own kernels: weights quantized per channel, input and output per tensor, as a calibrated model
has them. `quantize` is the cost of quantizing a float32 map if a part of the network stays in float32.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tabulate import tabulate
from timing import median_seconds
from torch import Tensor, nn
from torch.ao.nn import quantized

from regionclip.ops import WinogradConv2d, suits_winograd

LAYERS = (
    ("first 3x3, before the pool", 512, 512, 3, 14),
    ("3x3", 512, 512, 3, 7),
    ("1x1 to the residual sum", 512, 2048, 1, 7),
    ("1x1 from it", 2048, 512, 1, 7),
)
"""Name, input and output channels, kernel and map side of the convolutions in RN50's `layer4`, run per region."""

TIMES = (1, 2, 3, 2)
"""Number of times each of them runs."""


class Layer(NamedTuple):
    """A convolution in both precisions."""

    name: str
    exact: nn.Module
    rounded: nn.Module
    maps: Tensor
    rounded_maps: Tensor


def layers(regions: int) -> Iterator[Layer]:
    """Yield the layers with maps of `regions` regions."""
    for name, channels, out, kernel, side in LAYERS:
        plain = nn.Conv2d(channels, out, kernel, padding=kernel // 2).requires_grad_(False)
        maps = torch.randn(regions, channels, side, side).to(memory_format=torch.channels_last)
        exact: nn.Module = plain.to(memory_format=torch.channels_last)
        if suits_winograd(plain):
            exact = WinogradConv2d(plain.weight, plain.bias, torch.float32)
        rounded = quantized.Conv2d(channels, out, kernel, padding=kernel // 2)
        scales = plain.weight.abs().amax(dim=(1, 2, 3)).double() / 127
        weight = torch.quantize_per_channel(plain.weight, scales, torch.zeros(out, dtype=torch.long), 0, torch.qint8)
        rounded.set_weight_bias(weight, plain.bias)
        rounded.scale, rounded.zero_point = float(plain(maps).abs().max()) / 127, 128
        yield Layer(name, exact, rounded, maps, quantize(maps))


def quantize(maps: Tensor) -> Tensor:
    """Return a map in unsigned 8-bit integers."""
    return torch.quantize_per_tensor(maps, float(maps.abs().max()) / 127, 128, torch.quint8)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rows, exact, rounded = [], 0.0, 0.0
    for layer, times in zip(layers(arguments.regions), TIMES, strict=True):
        seconds = [
            median_seconds(job, arguments.repeats)
            for job in (
                lambda: layer.exact(layer.maps),  # noqa: B023  called at once
                lambda: layer.rounded(layer.rounded_maps),  # noqa: B023
                lambda: quantize(layer.maps),  # noqa: B023
            )
        ]
        rows.append([layer.name, times, *(1e3 * value for value in seconds), seconds[0] / seconds[1]])
        exact, rounded = exact + times * seconds[0], rounded + times * seconds[1]
    print(f"RN50, {arguments.regions} regions, engine {torch.backends.quantized.engine}")
    print(tabulate(rows, headers=["", "times", "float32, ms", "int8, ms", "quantize, ms", "ratio"], floatfmt=".2f"))
    print(f"layer4 in int8: {exact / rounded:.2f} times as fast, without rounding maps between")
    if arguments.json:
        print(json.dumps({"speedup_int8": exact / rounded}))


if __name__ == "__main__":
    main()
