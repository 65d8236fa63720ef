"""Scores as users see them: in [0, 1], in the order of the detector's own, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regionclip import RegionCLIP
from regionclip.modeling.postprocess import SCORE_FUSIONS, ProbabilityOnly, ProbabilityTimesObjectness
from regionclip.modeling.score_scale import OddsOfSquare, PlattScaling, SameScores
from tests.helpers.paths import DATA

PHOTO = sorted((DATA / "four_photos" / "images").iterdir())[0]
FUSIONS = [*SCORE_FUSIONS.values(), ProbabilityOnly(), ProbabilityTimesObjectness(0.5)]


@given(st.floats(0, 1), st.floats(0, 30))
def test_shown_scores_of_every_fusion_are_in_the_unit_range(probability, logit):
    for fusion in FUSIONS:
        score = fusion(torch.tensor([probability], dtype=torch.float64), torch.tensor([logit], dtype=torch.float64))
        assert 0 <= float(fusion.scale.shown(score)) <= 1


def test_published_scores_become_shares_of_odds():
    """By hand: p = 0.9 and a logit of 5 are odds of 4.5 to 1."""
    score = SCORE_FUSIONS["upstream"](torch.tensor([0.9]), torch.tensor([5.0]))
    assert float(OddsOfSquare().shown(score)) == pytest.approx(4.5 / 5.5, abs=1e-6)
    shown = OddsOfSquare().shown(torch.linspace(0, 6, 1000))
    assert bool((shown.diff() > 0).all())


@given(st.floats(0.001, 0.999))
def test_a_threshold_is_the_same_on_both_scales(shown):
    own = OddsOfSquare().own(shown)
    assert float(OddsOfSquare().shown(torch.tensor(own, dtype=torch.float64))) == pytest.approx(shown, abs=1e-9)
    assert OddsOfSquare().own(1.0) == float("inf") and OddsOfSquare().own(0.0) == 0.0


@given(st.floats(0.01, 0.99), st.floats(0.2, 5))
def test_a_temperature_divides_log_odds(shown, temperature):
    scale = PlattScaling(SameScores(), temperature)
    scores = torch.tensor([shown], dtype=torch.float64)
    odds = (shown / (1 - shown)) ** (1 / temperature)
    assert float(scale.shown(scores)) == pytest.approx(odds / (1 + odds))
    assert scale.own(float(scale.shown(scores))) == pytest.approx(shown)
    ends = scale.shown(torch.tensor([0.0, 0.5, 1.0]))
    assert ends.tolist() == [0.0, 0.5, 1.0]
    assert (scale.own(0.0), scale.own(1.0)) == (0.0, 1.0)


@given(st.floats(0.01, 0.99), st.floats(0.2, 5), st.floats(-4, 4))
def test_a_bias_is_added_to_log_odds(shown, temperature, bias):
    scale = PlattScaling(SameScores(), temperature, bias)
    odds = (shown / (1 - shown)) ** (1 / temperature) * np.exp(bias)
    found = float(scale.shown(torch.tensor([shown], dtype=torch.float64)))
    assert found == pytest.approx(odds / (1 + odds))
    assert scale.own(found) == pytest.approx(shown)


def test_a_temperature_changes_scores_and_no_detections(detector_folder):
    found = {}
    for temperature in (1.0, 2.0):
        overrides = ["MODEL.CLIP.SCORE_TEMPERATURE", temperature, "MODEL.CLIP.VIS", "False"]
        detector = RegionCLIP.from_pretrained(detector_folder, device="cpu", overrides=overrides)
        detector.set_image(PHOTO)
        detector.set_vocabulary(["cat", "dog", "car"], background=None)
        found[temperature] = detector.predict(threshold=0.0)
    assert np.array_equal(found[1.0].boxes, found[2.0].boxes)
    odds = (found[1.0].scores / (1 - found[1.0].scores)).astype(np.float64) ** 0.5
    np.testing.assert_allclose(found[2.0].scores, odds / (1 + odds), rtol=1e-5)


def test_published_scores_are_an_option_with_the_same_detections(detector_folder):
    found = {}
    for shown in ("unit", "published"):
        overrides = ["MODEL.CLIP.SHOWN_SCORES", shown, "MODEL.CLIP.VIS", "False"]
        detector = RegionCLIP.from_pretrained(detector_folder, device="cpu", overrides=overrides)
        detector.set_image(PHOTO)
        detector.set_vocabulary(["cat", "dog", "car"], background=None)
        found[shown] = detector.predict(threshold=0.0)
    unit, published = found["unit"], found["published"]
    assert len(unit) > 10
    assert np.array_equal(unit.boxes, published.boxes)
    assert np.array_equal(unit.class_ids, published.class_ids)
    odds = published.scores.astype(np.float64) ** 2
    np.testing.assert_allclose(unit.scores, odds / (1 + odds), rtol=1e-6)
    middle = float(np.median(unit.scores))
    confident = detector.predict(threshold=(middle / (1 - middle)) ** 0.5)
    assert len(confident) == pytest.approx((unit.scores >= middle).sum(), abs=1)


@pytest.mark.parametrize("behavior", ["corrected", "upstream"])
def test_reported_probabilities_are_shown_as_they_are(behavior, detector_folder):
    reported = ["MODEL.CLIP.VIS", "True", "MODEL.CLIP.VIS_BEHAVIOUR", behavior]
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu", overrides=reported)
    detector.set_image(PHOTO)
    detector.set_vocabulary(["cat", "dog", "car"], background=None)
    found = detector.predict(threshold=0.4, words_per_box=3)
    assert len(found) > 3
    of_class = found.top_scores[found.top_class_ids == found.class_ids[:, None]]
    np.testing.assert_allclose(found.scores, of_class, rtol=1e-5)
