"""Convolutions with fewer multiplications give what direct ones give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from regionclip.ops import WinogradConv2d, native_problem, suits_winograd, use_implementation, winograd

pytestmark = pytest.mark.skipif(bool(native_problem("cpu")), reason=f"native operators: {native_problem('cpu')}")

TYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


def problem(seed, images=2, channels=32, out_channels=16, height=9, width=11):
    """Maps, weights and bias in float64, of about the spread that layers of a detector have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator, dtype=torch.float64) / channels**0.5 / 3
    return x, weight, torch.randn(out_channels, generator=generator, dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.booleans(),
)
@torch.no_grad()
def test_any_size_in_float32(seed, images, lanes_in, lanes_out, height, width, tile, with_bias, relu):
    x, weight, bias = problem(seed, images, 16 * lanes_in, 16 * lanes_out, height, width)
    bias = bias if with_bias else None
    factors = winograd.transform_weights(weight.float(), tile)
    actual = winograd.convolve(x.float(), factors, None if bias is None else bias.float(), relu=relu)
    assert actual.shape == (images, 16 * lanes_out, height, width)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(actual.double(), expected.relu() if relu else expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("tile", [2, 4])
@torch.no_grad()
def test_the_transforms_are_exact_in_float64(tile):
    """The definition of the method in matrices: interpolation through the points gives the convolution."""
    points = winograd.POINTS[tile]
    n = tile + 2
    x, weight, _ = problem(0, 1, 3, 4, n, n)
    # Column p: coefficients of the product of the other points' factors, the last one that of all.
    columns = [torch.tensor([1.0], dtype=torch.float64) for _ in range(n)]
    for column in range(n):
        for other, point in enumerate(points):
            if other != column:
                product = torch.zeros(len(columns[column]) + 1, dtype=torch.float64)
                product[1:] += columns[column]
                product[:-1] -= point * columns[column]
                columns[column] = product
    into = torch.stack([F.pad(column, (0, n - len(column))) for column in columns])
    out = torch.tensor([[p**i for p in points] + [float(i == tile - 1)] for i in range(tile)], dtype=torch.float64)
    factors = winograd.transform_weights(weight, tile).view(n, n, 3, 4)
    products = torch.einsum("ijck,ijc->kij", factors, (into @ x[0] @ into.T).permute(1, 2, 0))
    torch.testing.assert_close(out @ products @ out.T, F.conv2d(x, weight)[0])


@pytest.mark.parametrize(("cell", "component"), TYPES)
@pytest.mark.parametrize("tile", [2, 4])
@torch.no_grad()
def test_half_precision_rounds_about_as_much_as_the_direct_convolution(cell, component, tile):
    x, weight, bias = problem(1, 4, 128, 128, 14, 14)
    x = x.to(cell).double()
    expected = F.conv2d(x, weight, bias, padding=1)
    factors = winograd.transform_weights(weight.float(), tile).to(component)
    actual = winograd.convolve(x.to(cell), factors, bias)
    assert actual.dtype == cell
    direct = F.conv2d(x.to(cell), weight.to(cell), bias.to(cell), padding=1)
    error, direct_error = ((values.double() - expected).pow(2).mean().sqrt() for values in (actual, direct))
    # Tiles of 4 add up more of what is rounded, which only float32 components are good enough for.
    limit = 1.6 if component == torch.float32 and cell == torch.bfloat16 else 6 if tile == 4 else 2
    assert error < limit * direct_error


@torch.no_grad()
def test_threads_and_portions_do_not_matter(monkeypatch):
    x, weight, bias = problem(2, 3, 16, 32, 20, 17)
    factors = winograd.transform_weights(weight.float(), 4)
    expected = winograd.convolve(x.float(), factors, bias)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.testing.assert_close(winograd.convolve(x.float(), factors, bias), expected, atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(winograd, "BYTES_AT_ONCE", 1)
    torch.testing.assert_close(winograd.convolve(x.float(), factors, bias), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_is_not_a_number_reaches_the_cells_around_it_and_no_other_tile():
    x, weight, bias = problem(3, 1, 16, 16, 16, 16)
    x[0, 3, 1, 1] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        actual = winograd.convolve(x.to(dtype), winograd.transform_weights(weight.to(dtype), 4), bias, relu=True)
        assert actual[0, :, :3, :3].isnan().all()
        assert not actual[0, :, 4:, 4:].isnan().any()


def layer(channels=128, **options):
    options = {"kernel_size": 3, "padding": 1} | options
    return nn.Conv2d(channels, 128, **options)


@pytest.mark.parametrize("shape", [(4, 128, 24, 24), (1, 128, 4, 600), (3, 128, 1, 1), (0, 128, 8, 8)])
@torch.no_grad()
def test_the_layer_is_the_convolution(shape):
    direct = layer()
    ours = WinogradConv2d(direct.weight, direct.bias, relu=True)
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), F.relu(direct(x)), atol=2e-5, rtol=0)


def test_the_layer_chooses_where_it_pays(monkeypatch):
    called = []
    monkeypatch.setattr(winograd, "convolve", lambda x, factors, bias, relu: called.append(x) or x)
    direct = layer()
    ours = WinogradConv2d(direct.weight, direct.bias)
    x = torch.zeros(2, 128, 32, 32)
    with torch.no_grad():
        ours(x)
        assert len(called) == 1
        ours(x[..., :8, :8])  # few tiles
        ours(torch.zeros(64, 128, 5, 5))  # tiles reach far beyond the map
        WinogradConv2d(direct.weight, direct.bias, torch.bfloat16)(torch.zeros(64, 128, 5, 5).bfloat16())
        WinogradConv2d(direct.weight, direct.bias, torch.float64)(x.double())
        with use_implementation("pytorch"):
            ours(x)
        assert len(called) == 1
    ours(x.requires_grad_()).sum().backward()
    assert len(called) == 1
    assert x.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "padding": 0},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"channels": 64},
        {"channels": 130},
    ],
)
def test_other_convolutions_are_left_alone(options):
    assert suits_winograd(layer())
    assert not suits_winograd(layer(**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": torch.zeros(1, 16, 8, 8)}, "channels-last"),
        ({"map": torch.zeros(1, 8, 8, 20).permute(0, 3, 1, 2)}, "multiple of 16"),
        ({"map": torch.zeros(1, 8, 8, 16, dtype=torch.float64).permute(0, 3, 1, 2)}, "float32 or bfloat16"),
        ({"windows": torch.zeros(9, 4, 16)}, "16 or 36 components"),
        ({"windows": torch.zeros(36, 4, 32)}, "dense rows"),
        ({"first": 1}, "tiles from 0 to 4"),
        ({"first": -1}, "tiles from 0 to 4"),
    ],
)
def test_the_operators_refuse_what_does_not_fit(change, message):
    arguments = {
        "map": torch.zeros(1, 8, 8, 16).permute(0, 3, 1, 2),
        "first": 0,
        "windows": torch.zeros(36, 4, 16),
    } | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.regionclip.winograd_windows(arguments["map"], arguments["first"], arguments["windows"])
    if "windows" not in change or change["windows"].shape[0] == 36:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.regionclip.winograd_assemble(
                arguments["windows"], None, False, arguments["first"], arguments["map"]
            )
