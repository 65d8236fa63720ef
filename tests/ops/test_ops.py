"""The operators: every implementation against definitions written here, torchvision, and the reference."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip.ops import (
    IMPLEMENTATIONS,
    batched_nms,
    implementation,
    native_problem,
    nms,
    roi_align,
    soft_nms,
    use_implementation,
)
from tests.helpers.operators import LAYOUTS, STRANGE, TOLERANCES, literal_nms, random_boxes, random_problem
from tests.helpers.paths import REPOSITORY

NATIVE = pytest.mark.skipif(bool(native_problem("cpu")), reason=f"native operators: {native_problem('cpu')}")
KINDS = [pytest.param(name, marks=NATIVE if name == "native" else ()) for name in IMPLEMENTATIONS]
FAST = [param for param in KINDS if "reference" not in str(param)]


@pytest.fixture(params=KINDS)
def kind(request):
    """Run a test with one implementation after the other."""
    with use_implementation(request.param):
        yield request.param


# --- RoIAlign


def literal_roi_align(features, rois, height, width, scale, sampling_ratio, aligned):
    """The definition in loops over plain numbers: mean over samples of the bilinear interpolation."""
    maps, offset = features.tolist(), 0.5 if aligned else 0.0
    rows, columns = features.shape[-2:]

    def value(plane, y, x):
        if not (-1 <= y <= rows and -1 <= x <= columns):
            return 0.0
        y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
        y0, x0 = min(int(y), rows - 1), min(int(x), columns - 1)
        y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
        top = plane[y0][x0] * (1 - (x - x0)) + plane[y0][x1] * (x - x0)
        bottom = plane[y1][x0] * (1 - (x - x0)) + plane[y1][x1] * (x - x0)
        return top * (1 - (y - y0)) + bottom * (y - y0)

    result = []
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top, length_x, length_y = x1 * scale - offset, y1 * scale - offset, (x2 - x1) * scale, (y2 - y1) * scale
        if not aligned:
            length_x, length_y = max(length_x, 1), max(length_y, 1)
        ny = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length_y / height), 0)
        nx = sampling_ratio if sampling_ratio > 0 else max(math.ceil(length_x / width), 0)
        result.append(
            [
                [
                    [
                        sum(
                            value(
                                plane,
                                top + (i + (a + 0.5) / ny) * length_y / height,
                                left + (j + (b + 0.5) / nx) * length_x / width,
                            )
                            for a in range(ny)
                            for b in range(nx)
                        )
                        / max(ny * nx, 1)
                        for j in range(width)
                    ]
                    for i in range(height)
                ]
                for plane in maps[int(image)]
            ]
        )
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_negative_sampling_ratio_averages_finer_bins(kind, parts, dtype):
    features, rois = random_problem(7, dtype=dtype)
    finer = roi_align(features, rois, (3 * parts, 2 * parts), 1 / 16, 0, True)
    actual = roi_align(features, rois, (3, 2), 1 / 16, -parts, True)
    expected = torch.nn.functional.avg_pool2d(finer, parts)
    torch.testing.assert_close(actual, expected, atol=1e-5 if dtype == torch.float32 else 1e-9, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
def test_roi_align_is_the_mean_of_bilinear_samples(kind, sampling_ratio, aligned):
    features, rois = random_problem(1, torch.float64, channels=2, height=7, width=9, count=5)
    expected = literal_roi_align(features, rois, 3, 2, 1 / 16, sampling_ratio, aligned)
    actual = roi_align(features, rois, (3, 2), 1 / 16, sampling_ratio, aligned)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@NATIVE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 16, 17, 64, 70, 130])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_native_roi_align_equals_the_reference(dtype, channels, layout):
    """Relative to the largest value; the reference works on the same numbers in float64."""
    for seed, (sampling_ratio, aligned) in enumerate([(0, True), (0, False), (2, True), (5, False)]):
        features, rois = random_problem(seed, dtype, channels=channels)
        arguments = ((14, 5), 1 / 16, sampling_ratio, aligned)
        with use_implementation("reference"):
            expected = roi_align(features.double(), rois.double(), *arguments)
        with use_implementation("native"):
            actual = roi_align(features.contiguous(memory_format=LAYOUTS[layout]), rois, *arguments)
        assert actual.dtype == dtype
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCES[dtype]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2]), st.booleans(), st.integers(1, 40))
def test_every_implementation_equals_torchvision(seed, sampling_ratio, aligned, channels):
    features, rois = random_problem(seed, channels=channels)
    expected = torchvision.ops.roi_align(features, rois, (4, 7), 1 / 16, sampling_ratio, aligned)
    for name in IMPLEMENTATIONS:
        if name != "native" or not native_problem("cpu"):
            with use_implementation(name):
                actual = roi_align(features, rois, (4, 7), 1 / 16, sampling_ratio, aligned)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)


def test_roi_align_keeps_the_layout_or_takes_the_one_asked_for(kind):
    features, rois = random_problem(2)
    channels_last = features.contiguous(memory_format=torch.channels_last)
    assert roi_align(features, rois, 3).is_contiguous()
    assert roi_align(channels_last, rois, 3).is_contiguous(memory_format=torch.channels_last)
    asked = roi_align(features, rois, 3, memory_format=torch.channels_last)
    assert asked.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(asked, roi_align(features, rois, 3))
    # Neither layout: a part of a map.
    part = torch.randn(2, 9, 30, 40)[:, ::2, 3:20, ::3]
    torch.testing.assert_close(roi_align(part, rois, 3, 1 / 16), roi_align(part.contiguous(), rois, 3, 1 / 16))


def test_roi_align_takes_a_list_of_boxes(kind):
    features, rois = random_problem(3)
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    together = torch.cat([rois[rois[:, 0] == i] for i in range(2)])
    torch.testing.assert_close(roi_align(features, boxes, 3, 1 / 16), roi_align(features, together, 3, 1 / 16))
    assert roi_align(features, [torch.zeros(0, 4)] * 2, 3).shape == (0, 5, 3, 3)


@pytest.mark.parametrize(
    ("shape", "count"), [((2, 0, 4, 4), 3), ((2, 3, 0, 4), 3), ((2, 3, 4, 0), 3), ((2, 3, 4, 4), 0), ((0, 3, 4, 4), 0)]
)
def test_roi_align_of_nothing_is_zero(kind, shape, count):
    features = torch.randn(shape, requires_grad=True)
    pooled = roi_align(features, torch.rand(count, 5), (2, 3))
    assert pooled.shape == (count, shape[1], 2, 3)
    assert not pooled.any()
    pooled.sum().backward()
    assert features.grad.shape == shape and not features.grad.any()


NOWHERE = [math.nan, math.inf, -math.inf, 1e30, 3e38]


@pytest.mark.parametrize("name", [p for p in KINDS if "torchvision" not in str(p)])
@pytest.mark.parametrize("value", NOWHERE)
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_region_that_lies_nowhere_pools_to_zero(name, column, value):
    features, rois = random_problem(4, channels=20)
    rois[3, column] = value
    with use_implementation(name):
        pooled = roi_align(features, rois, 3, 1 / 16, 0, True)
        others = torch.arange(9) != 3
        assert not pooled[3].any()
        torch.testing.assert_close(pooled[others], roi_align(features, rois[others], 3, 1 / 16, 0, True))


def test_torchvision_is_kept_from_regions_that_crash_it():
    features, rois = random_problem(4)
    rois[0, 1] = math.nan
    with use_implementation("torchvision"), pytest.raises(ValueError, match="finite"):
        roi_align(features, rois, 3)


@pytest.mark.parametrize("name", [p for p in KINDS if "torchvision" not in str(p)])
def test_regions_far_larger_than_the_map_are_mostly_outside(name):
    """A box of 10^5 cells on a map of ones: the mean counts what lies inside, 14 + 14 of 10^5 a side at most."""
    features = torch.ones(1, 20, 13, 17)
    rois = torch.tensor([[0.0, -5e4, -5e4, 5e4, 5e4], [0.0, -300.0, -2.0, 300.0, 5e4]])
    with use_implementation(name):
        pooled = roi_align(features, rois, 7, 1.0, 0, True)
    assert torch.isfinite(pooled).all()
    # The map lies in the middle bin; 14 of 10^5 / 7 rows of samples are inside, and 18 columns.
    expected = (14 * 7 / 1e5) * (18 * 7 / 1e5)
    assert pooled[0, 0, 3, 3].item() == pytest.approx(expected, rel=0.1)
    assert pooled[0].sum().item() == pytest.approx(20 * pooled[0, 0, 3, 3].item(), rel=1e-4)


def test_feature_values_that_are_no_numbers_stay_where_they_are(kind):
    """Only bins that read the cell see it."""
    features = torch.zeros(1, 3, 12, 12)
    features[0, 1, 2, 2] = math.nan
    features[0, 2, 0, 0] = math.nan
    rois = torch.tensor([[0.0, 0.0, 0.0, 12.0, 12.0], [0.0, -9.0, 5.0, 4.0, 30.0]])
    pooled = roi_align(features, rois, 4, 1.0, 0, True).isnan()
    expected = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    expected[0, 1, 0, 0] = expected[0, 2, 0, 0] = True
    if kind == "torchvision":  # its samples outside the map read the first cell
        pooled[1] = False
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e9, math.nan, math.inf])
def test_bad_image_number_is_an_error(kind, index):
    features, rois = random_problem(5)
    rois[2, 0] = index
    with pytest.raises((ValueError, RuntimeError), match=r"from 0 to 1"):
        roi_align(features, rois, 3)


@NATIVE
def test_native_operator_checks_by_itself():
    features, rois = random_problem(5)
    call = torch.ops.regionclip.roi_align
    for changes in ({"index": 7.0}, {"rois": rois[:, :4]}, {"rois": rois.double()}, {"size": 0}, {"ratio": 10**6}):
        bad = changes.get("rois", rois.clone())
        if "index" in changes:
            bad[0, 0] = changes["index"]
        with pytest.raises(RuntimeError, match="roi_align: expected"):
            call(features, bad, changes.get("size", 3), 3, 1.0, changes.get("ratio", 0), True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(3, 4, 4)}, r"\[N, C, H, W\]"),
        ({"features": torch.zeros(1, 3, 4, 4, dtype=torch.long)}, "float features"),
        ({"rois": torch.zeros(2, 4)}, r"\[R, 5\]"),
        ({"output_size": 0}, "output size"),
        ({"sampling_ratio": 10**9}, "sampling ratio"),
    ],
)
def test_roi_align_refuses_wrong_arguments(kind, changes, message):
    arguments = {"features": torch.zeros(1, 3, 4, 4), "rois": torch.zeros(2, 5), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**(arguments | changes))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradients(kind, sampling_ratio, layout):
    features, rois = random_problem(6, torch.float64, channels=3, height=6, width=7, count=4)
    features = features.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()

    def pool(x):
        return roi_align(x, rois, (2, 3), 1 / 16, sampling_ratio, True)

    assert torch.autograd.gradcheck(pool, (features,))
    if kind in ("native", "reference"):
        assert torch.autograd.gradgradcheck(pool, (features,))


@NATIVE
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_native_gradient_equals_the_reference(dtype, layout):
    features, rois = random_problem(7, dtype, channels=70, count=20)
    grad = torch.randn(20, 70, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    results = []
    for name, maps, table in (("reference", features.double(), rois.double()), ("native", features, rois)):
        leaf = maps.detach().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        with use_implementation(name):
            roi_align(leaf, table, (7, 5), 1 / 16, 0, True).backward(grad.to(maps.dtype))
        results.append(leaf.grad)
    error = (results[1].double() - results[0]).abs().max() / results[0].abs().max()
    assert error <= TOLERANCES[dtype]


@NATIVE
def test_native_gradient_has_the_same_bits_for_any_number_of_threads():
    features, rois = random_problem(8, channels=200, count=50)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = features.clone().requires_grad_()
            roi_align(leaf, rois, 7, 1 / 16, 0, True).square().sum().backward()
            results.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@NATIVE
def test_torch_accepts_the_registrations():
    features, rois = random_problem(9, torch.float64, channels=3)
    features.requires_grad_()
    grad = torch.randn(9, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes, scores = rois[:, 1:].contiguous(), torch.rand(9, dtype=torch.float64)
    classes = torch.randint(0, 2, (9,))
    ops = torch.ops.regionclip
    torch.library.opcheck(ops.roi_align.default, (features, rois, 4, 4, 1 / 16, 0, True, False))
    backward = (grad, rois, 2, 3, 13, 17, 1 / 16, 0, True, False, True)
    torch.library.opcheck(ops.roi_align_backward.default, backward)
    torch.library.opcheck(ops.nms.default, (boxes, scores, classes, 0.5, -1))
    torch.library.opcheck(ops.nms.default, (boxes, scores, None, 0.5, 3))
    torch.library.opcheck(ops.soft_nms.default, (boxes, scores, classes, 2, 0.5, 0.5, 0.001, -1))


@NATIVE
def test_compile_autocast_and_export_see_the_operators():
    features, rois = random_problem(10)

    class Pool(torch.nn.Module):
        def forward(self, maps, regions):
            return roi_align(maps, regions, 3, 1 / 16, 0, True) * 2

    expected = Pool()(features, rois)
    compiled = torch.compile(Pool(), backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(features, rois), expected)
    torch.testing.assert_close(compiled(features, rois[:4]), expected[:4])
    program = torch.export.export(Pool(), (features, rois), dynamic_shapes=({}, {0: torch.export.Dim("regions")}))
    assert "regionclip.roi_align" in program.graph_module.code
    torch.testing.assert_close(program.module()(features, rois[:5]), expected[:5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = Pool()(torch.nn.functional.conv2d(features, torch.eye(5)[:, :, None, None]), rois)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.02)


# --- NMS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 80), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_keeps_what_the_definition_keeps(seed, count, threshold):
    boxes, scores, classes = random_boxes(seed, count, dtype=torch.float64)
    for name in IMPLEMENTATIONS:
        if name != "native" or not native_problem("cpu"):
            with use_implementation(name):
                expected = literal_nms(boxes, scores, classes, threshold)
                assert batched_nms(boxes, scores, classes, threshold).tolist() == expected
                assert batched_nms(boxes, scores, classes, threshold, 7).tolist() == expected[:7]
                together = literal_nms(boxes, scores, torch.zeros(count), threshold)
                assert nms(boxes, scores, threshold).tolist() == together
                assert nms(boxes, scores, threshold, max_detections=3).tolist() == together[:3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3000), st.sampled_from([0.3, 0.5, 0.7]))
def test_nms_equals_torchvision(seed, count, threshold):
    boxes, scores, _ = random_boxes(seed, count)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_nms_compares_classes_exactly():
    """With 1203 classes on a large image, offsets between classes leave no digits for two boxes that just overlap."""
    box = torch.tensor([[0.0, 0.0, 0.01, 0.01], [0.0049, 0.0, 0.0149, 0.01]])
    boxes = torch.cat([box, torch.tensor([[0.0, 0.0, 20000.0, 20000.0]])])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1202, 1202, 0])
    assert batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]
    assert batched_nms(boxes, scores, classes, 0.3).tolist() == [0, 2]


@pytest.mark.parametrize("limit", [0, 1, 5, 10**6])
def test_a_limit_gives_the_first_of_all(kind, limit):
    boxes, scores, classes = random_boxes(3, 400)
    assert torch.equal(
        batched_nms(boxes, scores, classes, 0.4, limit), batched_nms(boxes, scores, classes, 0.4)[:limit]
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(STRANGE, STRANGE, STRANGE, STRANGE, STRANGE, st.integers(0, 1)), max_size=40))
def test_strange_boxes_have_a_defined_result(rows):
    boxes = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[4] for row in rows])
    classes = torch.tensor([row[5] for row in rows], dtype=torch.long)
    results = []
    for name in IMPLEMENTATIONS:
        if name != "native" or not native_problem("cpu"):
            with use_implementation(name):
                kept = batched_nms(boxes, scores, classes, 0.5)
                emitted, rescored = soft_nms(boxes, scores, classes)
                results.append((kept.tolist(), emitted.tolist(), rescored.tolist()))
                assert not scores[kept].isnan().any()
                roi_align_or_error(boxes)
    assert all(result == results[0] for result in results)


def roi_align_or_error(boxes):
    """Pool strange boxes: a finite result, or an exception where torchvision would crash."""
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    try:
        pooled = roi_align(torch.ones(1, 3, 5, 5), rois, 2, 0.5, 0, True)
    except ValueError as error:
        assert "finite" in str(error)
    else:
        assert torch.isfinite(pooled).all()


@NATIVE
def test_a_million_boxes():
    boxes, scores, _ = random_boxes(4, 10**6, size=10000.0)
    classes = torch.arange(10**6) % 1203
    kept = batched_nms(boxes, scores, classes, 0.5, 1000)
    assert len(kept) == 1000
    emitted, _ = soft_nms(boxes, scores, classes, max_detections=100)
    assert len(emitted) == 100
    rois = torch.cat([torch.zeros(10**6, 1), boxes], dim=1)
    assert roi_align(torch.randn(1, 1, 8, 8), rois, 1, 1 / 1250).shape == (10**6, 1, 1, 1)


def test_half_precision_is_compared_in_single(kind):
    boxes, scores, classes = random_boxes(5, 50)
    half = (boxes.half(), scores.half(), classes)
    assert torch.equal(batched_nms(*half, 0.5), batched_nms(half[0].float(), half[1].float(), classes, 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nms(torch.zeros(3, 5), torch.zeros(3), 0.5), r"boxes \[N, 4\]"),
        (lambda: nms(torch.zeros(3, 4), torch.zeros(2), 0.5), "scores"),
        (lambda: batched_nms(torch.zeros(3, 4), torch.zeros(3), torch.zeros(2), 0.5), "classes"),
        (lambda: nms(torch.zeros(3, 4), torch.zeros(3), 0.5, -2), "max_detections"),
        (lambda: soft_nms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), sigma=0.0), "sigma"),
    ],
)
def test_nms_refuses_wrong_arguments(kind, call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- soft-NMS


@NATIVE
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 150),
    st.sampled_from(["hard", "linear", "gaussian"]),
    st.sampled_from([None, 0, 1, 20]),
    st.sampled_from(["exact", "upstream"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_native_soft_nms_has_the_bits_of_the_loop(seed, count, method, limit, separation, dtype):
    boxes, scores, classes = random_boxes(seed, count, dtype=dtype)
    classes = classes // 10**9 + 3
    results = []
    for name in ("reference", "native"):
        with use_implementation(name):
            results.append(
                soft_nms(boxes, scores, classes, method=method, class_separation=separation, max_detections=limit)
            )
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# --- which implementation runs


def test_unknown_implementation_is_an_error(monkeypatch):
    monkeypatch.setenv("REGIONCLIP_OPS", "fast")
    with pytest.raises(ValueError, match="REGIONCLIP_OPS: expected one of native, pytorch, torchvision, reference"):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.parametrize("name", KINDS)
def test_environment_forces_an_implementation(monkeypatch, name):
    monkeypatch.setenv("REGIONCLIP_OPS", name)
    assert implementation(torch.device("cpu")) is IMPLEMENTATIONS[name]


def run_python(code, **environment):
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], env=path | environment, capture_output=True, text=True, check=False
    )


WITHOUT_EXTENSION = """
import importlib, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "regionclip.ops._native":
            raise ModuleNotFoundError(f"No module named {name}", name=name)
sys.meta_path.insert(0, Hide())
import torch
from regionclip.ops import nms, roi_align
print(nms(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.ones(1), 0.5).tolist())
print(roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 1).item())
"""


def test_without_extension_one_warning_and_the_same_results():
    done = run_python(WITHOUT_EXTENSION)
    assert done.stdout.split() == ["[0]", "1.0"], done.stderr
    assert done.stderr.count("native operators are not used") == 1
    assert "make setup" in done.stderr
    forced = run_python(WITHOUT_EXTENSION, REGIONCLIP_OPS="native")
    assert "REGIONCLIP_OPS=native: they are not built. Fix: make setup" in forced.stderr
    silent = run_python(WITHOUT_EXTENSION, REGIONCLIP_OPS="pytorch")
    assert "native operators" not in silent.stderr


@NATIVE
def test_native_operators_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(nms(torch.zeros(1, 4), torch.zeros(1), 0.5)) == 1
