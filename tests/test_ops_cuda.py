"""The operators on a GPU against those on the CPU; skipped where there is no GPU or no CUDA build."""

import math

import pytest
import torch

from regionclip.ops import batched_nms, native_problem, nms, roi_align, soft_nms
from tests.test_ops import LAYOUTS, TOLERANCES, random_boxes, random_problem

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(native_problem("cuda")), reason="needs a GPU and operators built with CUDA"
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (0, False), (2, True)])
def test_roi_align_and_its_gradient(dtype, layout, sampling_ratio, aligned):
    features, rois = random_problem(1, dtype, channels=33, count=40)
    grad = torch.randn(40, 33, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        leaf = features.to(device).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        pooled = roi_align(leaf, rois.to(device), (7, 5), 1 / 16, sampling_ratio, aligned)
        assert pooled.is_contiguous(memory_format=LAYOUTS[layout])
        pooled.backward(grad.to(device))
        results.append((pooled.detach().cpu().double(), leaf.grad.cpu().double()))
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert (on_gpu - on_cpu).abs().max() / on_cpu.abs().max() <= max(TOLERANCES[dtype], 1e-12) * 2


def test_the_deterministic_gradient_has_the_same_bits_each_time():
    features, rois = random_problem(2, channels=33, count=60)
    features, rois = features.cuda(), rois.cuda()
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


def test_bad_regions_have_a_defined_result():
    features, rois = random_problem(3)
    rois[0, 1], rois[1, 3], rois[2, 0], rois[3, 4] = math.nan, math.inf, 7, 1e30
    pooled = roi_align(features.cuda(), rois.cuda(), 3, 1 / 16, 0, True)
    assert not pooled[[0, 1, 3]].any()
    assert pooled[2].isnan().all()
    assert torch.isfinite(pooled[4:]).all()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 3000, 10000])
@pytest.mark.parametrize("limit", [None, 0, 10])
def test_nms(count, limit):
    boxes, scores, classes = random_boxes(4, count)
    if count:
        scores[0] = math.nan
    on_gpu = (boxes.cuda(), scores.cuda())
    for threshold in (0.3, 0.7):
        expected = nms(boxes, scores, threshold, limit)
        assert torch.equal(nms(*on_gpu, threshold, limit).cpu(), expected)
        expected = batched_nms(boxes, scores, classes, threshold, limit)
        assert torch.equal(batched_nms(*on_gpu, classes.cuda(), threshold, limit).cpu(), expected)


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("limit", [None, 20])
def test_soft_nms(method, limit):
    boxes, scores, classes = random_boxes(5, 500, dtype=torch.float64)
    keep, rescored = soft_nms(boxes, scores, classes, method=method, max_detections=limit)
    on_gpu = soft_nms(boxes.cuda(), scores.cuda(), classes.cuda(), method=method, max_detections=limit)
    assert torch.equal(on_gpu[0].cpu(), keep)
    torch.testing.assert_close(on_gpu[1].cpu(), rescored, atol=1e-12, rtol=1e-12)


def test_classes_need_not_lie_side_by_side():
    boxes, scores, classes = random_boxes(6, 200)
    strided = torch.stack([classes, classes + 1], dim=1).cuda()[:, 0]
    assert torch.equal(
        soft_nms(boxes.cuda(), scores.cuda(), strided, method="hard")[0].cpu(),
        soft_nms(boxes, scores, classes, method="hard")[0],
    )
    with pytest.raises(RuntimeError, match="different devices"):
        soft_nms(boxes.cuda(), scores.cuda(), classes)


def test_the_worst_score_is_a_score():
    boxes, scores = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([-math.inf])
    assert soft_nms(boxes.cuda(), scores.cuda(), torch.tensor([0]).cuda())[0].tolist() == [0]


def test_results_larger_than_32_bits_can_count():
    """2^31 elements and more; the last region must land at its place."""
    if torch.cuda.get_device_properties(0).total_memory < 16 << 30:
        pytest.skip("needs 16 GB of GPU memory")
    count = (1 << 31) // (2048 * 7 * 7) + 10
    features = torch.randn(1, 2048, 7, 9, device="cuda", dtype=torch.float16)
    rois = torch.tensor([[0.0, 8.0, 8.0, 100.0, 90.0]], device="cuda").repeat(count, 1)
    pooled = roi_align(features, rois, 7, 1 / 16, 0, True)
    assert pooled.numel() > 1 << 31
    assert torch.equal(pooled[0], pooled[-1])
