"""The operators on a GPU against those on the CPU and the definitions; skipped without a GPU or a CUDA build.

REGIONCLIP_TEST_DEVICE=cpu runs what does not need a GPU on the CPU.
"""

import math
import os

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip.ops import batched_nms, native_problem, nms, roi_align, soft_nms, use_implementation
from tests.helpers.operators import LAYOUTS, STRANGE, TOLERANCES, literal_nms, random_boxes, random_problem

DEVICE = os.environ.get("REGIONCLIP_TEST_DEVICE", "cuda")

pytestmark = pytest.mark.skipif(
    (DEVICE != "cpu" and not torch.cuda.is_available()) or bool(native_problem(torch.device(DEVICE).type)),
    reason="needs a GPU and operators built with CUDA",
)
ON_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (0, False), (2, True)])
def test_roi_align_and_its_gradient(dtype, layout, sampling_ratio, aligned):
    features, rois = random_problem(1, dtype, channels=33, count=40)
    grad = torch.randn(40, 33, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    results = []
    for device in ("cpu", DEVICE):
        leaf = features.to(device, copy=True).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        pooled = roi_align(leaf, rois.to(device), (7, 5), 1 / 16, sampling_ratio, aligned)
        assert pooled.is_contiguous(memory_format=LAYOUTS[layout])
        pooled.backward(grad.to(device))
        results.append((pooled.detach().cpu().double(), leaf.grad.cpu().double()))
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert (on_gpu - on_cpu).abs().max() / on_cpu.abs().max() <= max(TOLERANCES[dtype], 1e-12) * 2


def test_the_deterministic_gradient_has_the_same_bits_each_time():
    features, rois = random_problem(2, channels=33, count=60)
    features, rois = features.to(DEVICE), rois.to(DEVICE)
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            leaf = features.clone().requires_grad_()
            roi_align(leaf, rois, 7, 1 / 16, 0, True).square().sum().backward()
            gradients.append(leaf.grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    leaf = features.clone().requires_grad_()
    roi_align(leaf, rois, 7, 1 / 16, 0, True).square().sum().backward()
    torch.testing.assert_close(leaf.grad, gradients[0], atol=1e-4, rtol=1e-4)


@ON_GPU
def test_bad_regions_have_a_defined_result():
    features, rois = random_problem(3)
    rois[0, 1], rois[1, 3], rois[2, 0], rois[3, 4] = math.nan, math.inf, 7, 1e30
    pooled = roi_align(features.to(DEVICE), rois.to(DEVICE), 3, 1 / 16, 0, True)
    assert not pooled[[0, 1, 3]].any()
    assert pooled[2].isnan().all()
    assert torch.isfinite(pooled[4:]).all()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 3000, 10000])
@pytest.mark.parametrize("limit", [None, 0, 10])
def test_nms(count, limit):
    boxes, scores, classes = random_boxes(4, count)
    if count:
        scores[0] = math.nan
    on_gpu = (boxes.to(DEVICE), scores.to(DEVICE))
    for threshold in (0.3, 0.7):
        expected = nms(boxes, scores, threshold, limit)
        assert torch.equal(nms(*on_gpu, threshold, limit).cpu(), expected)
        expected = batched_nms(boxes, scores, classes, threshold, limit)
        assert torch.equal(batched_nms(*on_gpu, classes.to(DEVICE), threshold, limit).cpu(), expected)


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("limit", [None, 20])
def test_soft_nms(method, limit):
    boxes, scores, classes = random_boxes(5, 500, dtype=torch.float64)
    keep, rescored = soft_nms(boxes, scores, classes, method=method, max_detections=limit)
    on_gpu = soft_nms(boxes.to(DEVICE), scores.to(DEVICE), classes.to(DEVICE), method=method, max_detections=limit)
    assert torch.equal(on_gpu[0].cpu(), keep)
    torch.testing.assert_close(on_gpu[1].cpu(), rescored, atol=1e-12, rtol=1e-12)


def test_classes_need_not_lie_side_by_side():
    boxes, scores, classes = random_boxes(6, 200)
    strided = torch.stack([classes, classes + 1], dim=1).to(DEVICE)[:, 0]
    assert torch.equal(
        soft_nms(boxes.to(DEVICE), scores.to(DEVICE), strided, method="hard")[0].cpu(),
        soft_nms(boxes, scores, classes, method="hard")[0],
    )


@ON_GPU
def test_boxes_and_classes_have_to_be_on_one_device():
    boxes, scores, classes = random_boxes(6, 200)
    with pytest.raises(RuntimeError, match="different devices"):
        soft_nms(boxes.to(DEVICE), scores.to(DEVICE), classes)


def test_the_worst_score_is_a_score():
    boxes, scores = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([-math.inf])
    assert soft_nms(boxes.to(DEVICE), scores.to(DEVICE), torch.tensor([0]).to(DEVICE))[0].tolist() == [0]


@ON_GPU
def test_results_larger_than_32_bits_can_count():
    """2^31 elements and more; the last region must land at its place."""
    if torch.cuda.get_device_properties(0).total_memory < 16 << 30:
        pytest.skip("needs 16 GB of GPU memory")
    count = (1 << 31) // (2048 * 7 * 7) + 10
    features = torch.randn(1, 2048, 7, 9, device=DEVICE, dtype=torch.float16)
    rois = torch.tensor([[0.0, 8.0, 8.0, 100.0, 90.0]], device=DEVICE).repeat(count, 1)
    pooled = roi_align(features, rois, 7, 1 / 16, 0, True)
    assert pooled.numel() > 1 << 31
    assert torch.equal(pooled[0], pooled[-1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2]), st.booleans(), st.integers(1, 70))
def test_roi_align_equals_torchvision(seed, sampling_ratio, aligned, channels):
    features, rois = random_problem(seed, channels=channels)
    arguments = ((4, 7), 1 / 16, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(features, rois, *arguments)
    actual = roi_align(features.to(DEVICE), rois.to(DEVICE), *arguments)
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 80), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_nms_keeps_what_the_definition_keeps(seed, count, threshold):
    boxes, scores, classes = random_boxes(seed, count, dtype=torch.float64)
    on_device = (boxes.to(DEVICE), scores.to(DEVICE))
    expected = literal_nms(boxes, scores, classes, threshold)
    assert batched_nms(*on_device, classes.to(DEVICE), threshold).tolist() == expected
    assert batched_nms(*on_device, classes.to(DEVICE), threshold, 7).tolist() == expected[:7]
    assert nms(*on_device, threshold).tolist() == literal_nms(boxes, scores, torch.zeros(count), threshold)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 150), st.sampled_from(["hard", "linear", "gaussian"]))
def test_soft_nms_does_what_the_loop_does(seed, count, method):
    boxes, scores, classes = random_boxes(seed, count, dtype=torch.float64)
    with use_implementation("reference"):
        expected = soft_nms(boxes, scores, classes, method=method)
    actual = soft_nms(boxes.to(DEVICE), scores.to(DEVICE), classes.to(DEVICE), method=method)
    assert actual[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(actual[1].cpu(), expected[1], atol=1e-12, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[STRANGE] * 5, st.integers(0, 1)), max_size=40))
def test_strange_boxes_have_the_result_of_the_cpu(rows):
    boxes = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[4] for row in rows])
    classes = torch.tensor([row[5] for row in rows], dtype=torch.long)
    on_device = (boxes.to(DEVICE), scores.to(DEVICE), classes.to(DEVICE))
    assert batched_nms(*on_device, 0.5).tolist() == batched_nms(boxes, scores, classes, 0.5).tolist()
    assert soft_nms(*on_device)[0].tolist() == soft_nms(boxes, scores, classes)[0].tolist()
