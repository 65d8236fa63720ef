"""Regions are encoded until no other can change the detections, which are those of all regions bit by bit."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip import RegionCLIP
from regionclip.data.datasets.custom_images import list_images
from regionclip.files import REPOSITORY
from regionclip.modeling.heads.region_encoder import REGIONS_AT_ONCE
from regionclip.modeling.inference.early_end import MANY_CLASSES, LazyRegions, detect_among
from regionclip.modeling.postprocess import (
    DetectionSelector,
    GeometricMeanWithLogit,
    GeometricMeanWithSigmoid,
    ProbabilityOnly,
    report_probability,
    report_score,
)
from regionclip.modeling.suppression import AcrossClasses, HardSuppression, SoftSuppression

CLASSES = 5
SCENES = list_images(REPOSITORY / "datasets" / "demo_scenes")
FUSIONS = [GeometricMeanWithLogit(), GeometricMeanWithSigmoid(), ProbabilityOnly()]
SUPPRESSIONS = [
    HardSuppression(0.5),
    AcrossClasses(HardSuppression(0.4)),
    SoftSuppression("gaussian", 0.5, 0.5, 0.001, "exact"),
]


def random_proposals(seed, count, *, in_order=True):
    """Return proposals whose objectness falls from 4 to below -6, a few without a number."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 80
    proposals = Instances((100, 120))
    sides = 1 + torch.rand(count, 2, generator=generator) * 60
    proposals.proposal_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
    logits = torch.linspace(4, -8, count) + torch.randn(count, generator=generator)
    proposals.objectness_logits = logits.sort(descending=True).values if in_order else logits
    return proposals


def lazy(proposals, seed):
    """Return regions, and a list of the boxes that are encoded."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(proposals), 6, generator=generator) * 2
    encoded = []

    def encode(boxes):
        start = len(encoded)
        encoded.extend(boxes.tensor.tolist())
        return embeddings[start : len(encoded)]

    return LazyRegions(proposals, lambda count: encode), encoded


def classify(embeddings, proposals):
    return proposals.proposal_boxes.tensor, embeddings.softmax(dim=1)


class NeverFull(DetectionSelector):
    """A selector for which every region has to be encoded."""

    def largest_score(self, objectness_logits):
        return torch.full_like(objectness_logits, np.inf)


def detect_all(proposals, seed, selector, classes=CLASSES):
    """Select among all regions, each of which was encoded."""
    regions, _ = lazy(proposals, seed)
    never_full = NeverFull(**{part.name: getattr(selector, part.name) for part in fields(selector)})
    result = detect_among(regions, classify, classes, never_full)
    assert regions.encoded == len(proposals) or selector.max_detections == 0
    return result


def assert_same(found, expected):
    assert torch.equal(found[1], expected[1])
    for name in ("scores", "pred_classes"):
        assert torch.equal(found[0].get(name), expected[0].get(name))
    assert torch.equal(found[0].pred_boxes.tensor, expected[0].pred_boxes.tensor)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 500),
    st.sampled_from(FUSIONS),
    st.sampled_from(SUPPRESSIONS),
    st.sampled_from([None, 0, 1, 5, 30, 100]),
    st.sampled_from([report_score, report_probability]),
    st.booleans(),
    st.sampled_from([CLASSES, MANY_CLASSES]),
)
def test_detections_are_those_of_all_regions(seed, count, fusion, suppression, limit, reported, in_order, classes):
    proposals = random_proposals(seed, count, in_order=in_order)
    selector = DetectionSelector(0.05, limit, fusion, suppression, reported)
    regions, encoded = lazy(proposals, seed)
    found = detect_among(regions, classify, classes, selector)
    assert_same(found, detect_all(proposals, seed, selector, classes))
    assert len(encoded) == regions.encoded <= count


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.sampled_from(FUSIONS), st.sampled_from(SUPPRESSIONS[:2]))
def test_detections_are_those_of_all_regions_at_once(seed, count, fusion, suppression):
    proposals = random_proposals(seed, count)
    selector = DetectionSelector(0.05, 20, fusion, suppression)
    embeddings = torch.cat([part for _, part in lazy(proposals, seed)[0].chunks()])
    boxes, probabilities = classify(embeddings, proposals)
    expected, _ = selector(boxes, probabilities, proposals.objectness_logits, proposals.image_size)
    found, _ = detect_among(lazy(proposals, seed)[0], classify, CLASSES, selector)
    torch.testing.assert_close(found.scores, expected.scores)  # where a value lies in a vector changes its last bit


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(FUSIONS), st.sampled_from(SUPPRESSIONS), st.floats(0, 1.5))
def test_detections_with_a_wanted_score_are_those_of_all_regions(seed, fusion, suppression, lowest):
    proposals = random_proposals(seed, 400)
    selector = DetectionSelector(0.05, 100, fusion, suppression)
    found, rows = detect_among(lazy(proposals, seed)[0], classify, CLASSES, selector, lowest_score=lowest)
    expected, expected_rows = detect_all(proposals, seed, selector)
    wanted, expected_wanted = found.scores >= lowest, expected.scores >= lowest
    assert_same((found[wanted], rows[wanted]), (expected[expected_wanted], expected_rows[expected_wanted]))


@pytest.mark.parametrize("fusion", FUSIONS[:2])
@pytest.mark.parametrize(("limit", "lowest"), [(10, 0.0), (None, 0.5)])
def test_regions_that_cannot_count_are_not_encoded(fusion, limit, lowest):
    regions, encoded = lazy(random_proposals(1, 640), 1)
    detect_among(
        regions, classify, CLASSES, DetectionSelector(0.01, limit, fusion, HardSuppression(0.5)), lowest_score=lowest
    )
    assert 0 < len(encoded) < 640
    assert len(encoded) % REGIONS_AT_ONCE == 0


@pytest.mark.parametrize(
    ("fusion", "suppression"), [(FUSIONS[2], SUPPRESSIONS[0]), (FUSIONS[1], SUPPRESSIONS[2])], ids=["no bound", "soft"]
)
def test_all_regions_are_encoded_where_an_early_end_is_not_exact(fusion, suppression):
    regions, encoded = lazy(random_proposals(1, 640), 1)
    detect_among(regions, classify, CLASSES, DetectionSelector(0.01, 10, fusion, suppression))
    assert len(encoded) == 640


def test_a_later_question_encodes_what_was_left_out():
    proposals = random_proposals(2, 640)
    regions, encoded = lazy(proposals, 2)
    few, many = (DetectionSelector(0.01, limit, FUSIONS[1], SUPPRESSIONS[0]) for limit in (5, None))
    detect_among(regions, classify, CLASSES, few)
    before = len(encoded)
    assert_same(detect_among(regions, classify, CLASSES, many), detect_all(proposals, 2, many))
    assert before < len(encoded) == 640
    assert_same(detect_among(regions, classify, CLASSES, few), detect_all(proposals, 2, few))
    assert len(encoded) == 640


def test_an_interrupted_question_leaves_no_gap():
    proposals = random_proposals(3, 300)
    selector = DetectionSelector(0.01, None, FUSIONS[1], SUPPRESSIONS[0])
    regions, encoded = lazy(proposals, 3)
    encode = regions._make_encoder(0)
    fails = [False, True]

    def interrupted(boxes):
        if fails and fails.pop(0):
            raise KeyboardInterrupt
        return encode(boxes)

    regions._make_encoder = lambda count: interrupted
    with pytest.raises(KeyboardInterrupt):
        detect_among(regions, classify, CLASSES, selector)
    assert_same(detect_among(regions, classify, CLASSES, selector), detect_all(proposals, 3, selector))
    assert len(encoded) == 300


@pytest.fixture(scope="module")
def emoji():
    """Return the shipped detector with many proposals."""
    return RegionCLIP.from_pretrained(
        "emoji", device="cpu", overrides=["MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", "300"]
    )


def ask(detector, image):
    """Return what the same questions give for an image, and how many regions they took."""
    detector.forget_images()
    detector.set_image(image)
    found = [detector.predict(threshold=0.3, topk=25), detector.predict(topk=10, per_class=True), detector.predict()]
    return found, detector.encoded_images[-1].encoding.regions


def test_a_trained_detector_finds_the_same_with_fewer_regions(emoji, monkeypatch):
    early = [ask(emoji, scene) for scene in SCENES]
    monkeypatch.setattr(DetectionSelector, "largest_score", NeverFull.largest_score)
    for scene, (found, regions) in zip(SCENES, early, strict=True):
        expected, every = ask(emoji, scene)
        assert every.encoded == len(every) == len(regions)
        for one, other in zip(found, expected, strict=True):
            assert one.boxes.tobytes() == other.boxes.tobytes()
            assert one.scores.tobytes() == other.scores.tobytes()
            assert one.class_ids.tolist() == other.class_ids.tolist()
