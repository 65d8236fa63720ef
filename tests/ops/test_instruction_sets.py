"""The operators with each instruction set that the processor has, against definitions that use none."""

import functools
import os
import shutil
import subprocess
import sys

import pytest
import torch

from regionclip.ops import native, native_problem, roi_align, use_implementation
from tests.helpers.operators import LAYOUTS, literal_nms, random_boxes, random_problem
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.skipif(bool(native_problem("cpu")), reason=f"native operators: {native_problem('cpu')}")

CHANNELS = (1, 16, 70)
SHAPES = ((2, 128, 9, 11), (1, 144, 16, 13))
"""Of maps that are convolved."""


def maps_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pooled(dtype, channels, layout):
    """Return pooled maps and the gradient of the features."""
    features, rois = random_problem(channels, dtype, channels=channels)
    leaf = features.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    result = roi_align(leaf, rois, (14, 5), 1 / 16, 0, True)
    result.square().sum().backward()
    return result.detach(), leaf.grad


def compute(path):
    """Write what the native operators give in this process."""
    from regionclip.ops import WinogradConv2d, batched_nms

    results = {"instruction_set": native.instruction_set()}
    for dtype in (torch.float32, torch.float64):
        for channels in CHANNELS:
            for layout in LAYOUTS:
                results[dtype, channels, layout] = pooled(dtype, channels, layout)
    with torch.no_grad():
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                layer = WinogradConv2d(maps_of((shape[1], shape[1], 3, 3)) / 34, None, dtype, relu=True)
                results[shape, dtype] = layer(maps_of(shape).to(dtype))
    results["nms"] = batched_nms(*random_boxes(3, 300), 0.4).tolist()
    torch.save(results, path)


@functools.cache
def by_the_reference(dtype, channels, layout):
    with use_implementation("reference"):
        return pooled(dtype, channels, layout)


@pytest.fixture(scope="module", params=native.INSTRUCTION_SETS)
def computed(request, tmp_path_factory):
    if native.INSTRUCTION_SETS.index(request.param) > native.INSTRUCTION_SETS.index(native.instruction_set()):
        pytest.skip("this processor does not have it")
    path = tmp_path_factory.mktemp("results") / "results.pt"
    code = f"from tests.ops.test_instruction_sets import compute; compute({str(path)!r})"
    environment = os.environ | {"REGIONCLIP_ISA": request.param}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=environment)
    results = torch.load(path)
    assert results["instruction_set"] == request.param
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roi_align_and_its_gradient_equal_the_reference(computed, dtype, channels, layout):
    for actual, wanted in zip(
        computed[dtype, channels, layout], by_the_reference(dtype, channels, layout), strict=True
    ):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_winograd_equals_the_direct_convolution(computed, shape, dtype, tolerance):
    maps, weight = maps_of(shape).to(dtype).double(), (maps_of((shape[1], shape[1], 3, 3)) / 34).double()
    expected = torch.nn.functional.conv2d(maps, weight, padding=1).relu()
    assert (computed[shape, dtype].double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_nms_keeps_what_the_definition_keeps(computed):
    assert computed["nms"] == literal_nms(*random_boxes(3, 300), 0.4)


def test_an_instruction_set_that_is_not_there_is_an_error():
    code = "from regionclip.ops import native; native.instruction_set()"
    environment = os.environ | {"REGIONCLIP_ISA": "avx9"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert "REGIONCLIP_ISA: expected one of baseline" in done.stderr
    assert "got 'avx9'" in done.stderr


ARM_COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(shutil.which(ARM_COMPILER) is None, reason=f"no {ARM_COMPILER}")
@pytest.mark.parametrize("source", ["roi_align_loops", "winograd_loops", "box_list", "instruction_set"])
def test_loops_compile_to_neon(source, tmp_path):
    file = REPOSITORY / "regionclip" / "ops" / "csrc" / "cpu" / f"{source}.cpp"
    assembly = tmp_path / "loops.s"
    options = ["-std=c++17", "-O3", "-Wall", "-Werror", "-Wno-psabi", "-S", "-o", assembly]
    subprocess.run([ARM_COMPILER, *options, file], check=True)
    has_vectors = "fmul\tv" in assembly.read_text() or "fmla\tv" in assembly.read_text()
    assert has_vectors == (source != "instruction_set")  # which only asks the processor
