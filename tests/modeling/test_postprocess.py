"""Score fusion, suppression, reported scores and losses, against slow independent versions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from regionclip.modeling.losses.classification import build_classification_loss
from regionclip.modeling.postprocess import (
    DetectionSelector,
    GeometricMeanWithLogit,
    GeometricMeanWithSigmoid,
    ProbabilityOnly,
    report_probability,
    report_score,
)
from regionclip.modeling.suppression import HardSuppression, SoftSuppression
from regionclip.ops import soft_nms

SIZE = (100, 120)


def random_regions(seed, regions, classes):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(regions, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 1 + torch.rand(regions, 2, generator=generator) * 60], dim=1)
    probabilities = torch.randn(regions, classes + 1, generator=generator).mul(2).softmax(dim=1)
    return boxes, probabilities, torch.randn(regions, generator=generator) * 3


def select(boxes, probabilities, objectness, **changes):
    options = {"fusion": ProbabilityOnly(), "suppression": HardSuppression(0.5), "reported_score": report_score}
    return DetectionSelector(0.05, 100, **(options | changes))(boxes, probabilities, objectness, SIZE)


def slow_selection(boxes, scores):
    """Select in the published order: clip, threshold, suppression in each class, sort."""
    kept = []
    limits = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    clipped = torch.minimum(boxes.clamp(min=0), limits)
    for category in range(scores.shape[1]):
        candidates = sorted(
            (r for r in range(len(boxes)) if scores[r, category] > 0.05), key=lambda r: -scores[r, category]
        )
        chosen = []
        for region in candidates:
            if all(box_iou(clipped[region][None], clipped[other][None]) <= 0.5 for other in chosen):
                chosen.append(region)
        kept += [(float(scores[region, category]), region, category) for region in chosen]
    return sorted(kept, reverse=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 4))
def test_selection_equals_the_slow_one(seed, regions, classes):
    boxes, probabilities, objectness = random_regions(seed, regions, classes)
    result, rows = select(boxes, probabilities, objectness)
    expected = slow_selection(boxes, probabilities[:, :-1])
    found = list(zip(result.scores.tolist(), rows.tolist(), result.pred_classes.tolist(), strict=True))
    assert sorted(found, reverse=True) == expected
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([ProbabilityOnly(), GeometricMeanWithLogit(), GeometricMeanWithSigmoid()]),
    st.lists(
        st.floats(-8, 8, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]), min_size=1, max_size=8
    ),
    st.sampled_from([-1.0, 0.0, 0.01, 0.05, 0.5, 0.999, 1.0, 1.2, 2.0]),
)
def test_a_region_is_left_out_when_even_certainty_would_not_reach_the_threshold(fusion, logits, score):
    objectness = torch.tensor(logits)
    selector = DetectionSelector(score, 100, fusion, HardSuppression(0.5), report_score)
    reaching = selector.can_exceed(score, objectness)
    certain = fusion(torch.ones_like(objectness), objectness)
    assert not (certain[~reaching & fusion.scorable(objectness)] > score).any()
    assert not reaching[~fusion.scorable(objectness)].any()
    assert (certain[reaching] >= score * (1 - 1e-3)).all()  # and few that do not are kept


def test_upstream_fusion_drops_negative_objectness_and_exceeds_one():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    objectness = torch.tensor([9.0, -1.0, 0.0])
    result, rows = select(boxes, probabilities, objectness, fusion=GeometricMeanWithLogit())
    assert rows.tolist() == [0]  # the negative one is no number, zero objectness gives score zero
    assert result.scores.item() == pytest.approx(math.sqrt(0.9 * 9.0))


def test_sigmoid_fusion_keeps_every_proposal_and_stays_below_one():
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    objectness = torch.tensor([9.0, -1.0])
    result, rows = select(boxes, probabilities, objectness, fusion=GeometricMeanWithSigmoid())
    assert rows.tolist() == [0, 1]
    expected = [math.sqrt(0.9 / (1 + math.exp(-logit))) for logit in (9.0, -1.0)]
    assert result.scores.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("suppression", [HardSuppression(0.5), SoftSuppression("gaussian", 0.5, 0.5, 0.001, "exact")])
def test_reported_probability_is_the_one_of_the_region_and_sorted(suppression):
    boxes, probabilities, _ = random_regions(3, 12, 4)
    objectness = torch.rand(12) + 0.1
    result, rows = select(
        *(boxes, probabilities, objectness),
        fusion=GeometricMeanWithLogit(),
        suppression=suppression,
        reported_score=report_probability,
    )
    assert len(rows) > 3
    assert torch.equal(result.scores, probabilities[rows, result.pred_classes])
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_dropped(bad):
    boxes, probabilities, objectness = random_regions(1, 5, 2)
    boxes[2, 1] = bad
    _, rows = select(boxes, probabilities, objectness)
    assert 2 not in rows.tolist()
    assert len(rows)


def test_no_regions_and_no_finite_regions_give_no_detections():
    for boxes in (torch.zeros(0, 4), torch.full((3, 4), float("nan"))):
        result, rows = select(boxes, torch.full((len(boxes), 3), 0.33), torch.zeros(len(boxes)))
        assert len(result) == len(rows) == 0
        assert result.pred_boxes.tensor.shape == (0, 4)


def test_class_specific_boxes_go_with_their_class():
    probabilities = torch.tensor([[0.6, 0.3, 0.1]])
    boxes = torch.tensor([[0.0, 0, 10, 10, 50, 50, 60, 60]])
    result, _ = select(boxes, probabilities, torch.zeros(1))
    assert result.pred_classes.tolist() == [0, 1]
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [50, 50, 60, 60]]


def slow_soft_nms(boxes, scores, classes, method, sigma, threshold, prune):
    """Soft-NMS of each class alone in float64, merged by score."""
    decay = {
        "gaussian": lambda iou: math.exp(-(iou**2) / sigma),
        "linear": lambda iou: 1 - iou if iou > threshold else 1.0,
        "hard": lambda iou: 1.0 if iou < threshold else 0.0,
    }[method]
    emitted = []
    for category in set(classes.tolist()):
        remaining = {i: float(scores[i]) for i in range(len(boxes)) if classes[i] == category}
        while remaining:
            best = max(remaining, key=lambda i: remaining[i])
            emitted.append((remaining.pop(best), best))
            overlaps = {i: float(box_iou(boxes[best][None].double(), boxes[i][None].double())) for i in remaining}
            remaining = {i: s * decay(overlaps[i]) for i, s in remaining.items()}
            remaining = {i: s for i, s in remaining.items() if s > prune}
    return sorted(emitted, reverse=True)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 15),
    st.integers(1, 3),
    st.sampled_from(["gaussian", "linear", "hard"]),
    st.sampled_from([None, 1, 4]),
)
def test_soft_nms_equals_the_slow_one(seed, count, classes, method, limit):
    boxes, probabilities, _ = random_regions(seed, count, classes)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, count))
    scores = probabilities[:, 0] + 0.01
    keep, rescored = soft_nms(boxes, scores, labels, method=method, max_detections=limit)
    expected = slow_soft_nms(boxes, scores, labels, method, 0.5, 0.5, 0.001)
    # The very first box of the image is emitted whatever its score; later ones must exceed the prune value.
    expected = expected[:limit]
    assert len(keep) == len(expected)
    assert rescored.tolist() == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert rescored.tolist() == sorted(rescored.tolist(), reverse=True)


def test_soft_nms_of_nothing_is_nothing():
    keep, scores = soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(keep) == len(scores) == 0


def test_soft_nms_refuses_an_unknown_method():
    with pytest.raises(ValueError, match="cubic"):
        soft_nms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long), method="cubic")


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 2])
LOG_PROBABILITIES = [
    row[label] - math.log(sum(map(math.exp, row))) for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
]


@pytest.mark.parametrize(("exponent", "weight"), [(None, None), (None, 0.2), (0.5, 0.2), (2.0, None)])
def test_classification_losses_equal_their_formulas(exponent, weight):
    weights = [1.0, weight or 1.0, weight or 1.0]
    if exponent is None:
        expected = sum(-lp * w for lp, w in zip(LOG_PROBABILITIES, weights, strict=True)) / sum(weights)
    else:
        terms = zip(LOG_PROBABILITIES, weights, strict=True)
        expected = sum(-lp * (1 - math.exp(lp)) ** exponent * w for lp, w in terms) / 3
    assert build_classification_loss(exponent, weight)(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("gap", [10.0, 17.0, 20.0, 100.0])
def test_focal_gradient_stays_finite_for_certain_regions(gap):
    logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    build_classification_loss(0.5, None)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("exponent", [None, 0.5])
def test_loss_of_background_alone_is_zero_where_it_has_no_weight(exponent):
    logits = torch.randn(4, 3, requires_grad=True)
    loss = build_classification_loss(exponent, 0.0)(logits, torch.full((4,), 2))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("exponent", [None, 0.5])
def test_loss_of_an_empty_batch_is_zero_with_a_gradient(exponent):
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = build_classification_loss(exponent, 0.2)(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 3)
