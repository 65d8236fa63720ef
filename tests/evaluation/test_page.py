"""The page of an evaluation: matches, intervals, calibration and mistakes against the official implementations."""

import contextlib
import html
import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from PIL import Image

from regionclip.evaluation.coco import COCODetectionEvaluator, indexed
from regionclip.evaluation.ground_truth import coco_truth, lvis_truth
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from regionclip.evaluation.page.calibration import PlattParameters, best_threshold, calibration, fit_platt
from regionclip.evaluation.page.matching import UNMATCHED, match_classes
from regionclip.evaluation.page.mistakes import wrong_detections
from regionclip.evaluation.page.page import Evaluated, write_page
from regionclip.evaluation.page.precision import (
    Interval,
    average_precisions,
    bootstrap_weights,
    interval,
    mean_over_classes,
)
from tests.helpers.evaluation import random_case, result, write


def evaluator_of(tmp_path, truth, *, lvis, groups=None):
    ids = [category["id"] for category in truth["categories"]]
    file = write(tmp_path / "truth.json", truth)
    if lvis:
        return LVISDetectionEvaluator(file, tmp_path, category_ids=ids)
    names = [category["name"] for category in truth["categories"]]
    return COCODetectionEvaluator(file, tmp_path, class_names=names, category_ids=ids, class_groups=groups)


def matches_of(evaluator, results, *, lvis):
    truth = (lvis_truth if lvis else coco_truth)(evaluator.read_records(), evaluator.category_ids)
    return truth, match_classes(truth, results, is_federated=lvis)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_detection_matches_the_object_that_pycocotools_gives_it(tmp_path, seed):
    content, results = random_case(seed, lvis=False)
    truth, matches = matches_of(evaluator_of(tmp_path, content, lvis=False), results, lvis=False)
    with contextlib.redirect_stdout(io.StringIO()):
        official = indexed(pycocotools.coco.COCO(), truth.content)
        boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in truth.numbered(results)]
        evaluation = pycocotools.cocoeval.COCOeval(official, official.loadRes(boxes), "bbox")
        evaluation.evaluate()
    compared = 0
    for number, entry in enumerate(matches, start=1):
        for image in range(len(content["images"])):
            expected = evaluation.evalImgs[(number - 1) * 4 * len(content["images"]) + image]
            own = entry.images == image
            if expected is None:
                assert not own.any() and not entry.objects[image]
                continue
            np.testing.assert_array_equal(entry.scores[own], expected["dtScores"])
            np.testing.assert_array_equal(entry.ignored[:, own], expected["dtIgnore"].astype(bool))
            objects = [
                a["id"]
                for a in truth.content["annotations"]
                if (a["image_id"], a["category_id"]) == (image + 1, number)
            ]
            found = [[objects[i] if i != UNMATCHED else 0 for i in row] for row in entry.matched[:, own]]
            np.testing.assert_array_equal(np.array(found).reshape(10, -1), expected["dtMatches"])
            assert entry.objects[image] == len(expected["gtIds"]) - expected["gtIgnore"].sum()
            compared += len(expected["dtIds"])
    assert compared > 1000


@pytest.mark.parametrize("lvis", [False, True])
def test_ap_of_the_images_as_they_are_is_the_official_one(tmp_path, lvis):
    content, results = random_case(3, lvis=lvis)
    evaluator = evaluator_of(tmp_path, content, lvis=lvis)
    official = evaluator.metrics(results)["bbox"]
    _, matches = matches_of(evaluator, results, lvis=lvis)
    samples = np.stack([average_precisions(entry, np.ones((1, len(content["images"])))) for entry in matches])
    overall = mean_over_classes(samples[:, 0])
    assert overall == pytest.approx([official["AP"], official["AP50"]], abs=1e-9)
    if not lvis:
        own = [official[f"AP-{category['name']}"] for category in content["categories"]]
        assert samples[:, 0, 0] == pytest.approx(own, abs=1e-9, nan_ok=True)


def test_an_image_that_counts_twice_is_as_two_images(tmp_path):
    content, results = random_case(4, lvis=False)
    twice = content["images"][3]["id"]
    copy = 1000
    double = {
        **content,
        "images": [*content["images"], {**content["images"][3], "id": copy}],
        "annotations": content["annotations"]
        + [{**a, "image_id": copy, "id": 5000 + a["id"]} for a in content["annotations"] if a["image_id"] == twice],
    }
    doubled = results + [{**r, "image_id": copy} for r in results if r["image_id"] == twice]
    official = evaluator_of(tmp_path, double, lvis=False).metrics(doubled)["bbox"]
    _, matches = matches_of(evaluator_of(tmp_path, content, lvis=False), results, lvis=False)
    weights = np.ones((1, len(content["images"])))
    weights[0, 3] = 2
    own = np.stack([average_precisions(entry, weights)[0, 0] for entry in matches])
    expected = [official[f"AP-{category['name']}"] for category in content["categories"]]
    # Equal scores are in another order, which moves a precision by at most one detection.
    assert own == pytest.approx(expected, abs=0.5, nan_ok=True)


def test_intervals_hold_the_value_and_do_not_change(tmp_path):
    content, results = random_case(5, lvis=False)
    _, matches = matches_of(evaluator_of(tmp_path, content, lvis=False), results, lvis=False)
    weights = bootstrap_weights(matches)
    assert (weights[0] == 1).all() and (weights.sum(axis=1) == len(content["images"])).all()
    samples = mean_over_classes(np.stack([average_precisions(entry, weights)[:, 1] for entry in matches]))
    measured = interval(samples)
    assert measured.low < measured.value < measured.high
    np.testing.assert_array_equal(bootstrap_weights(matches), weights)


def test_an_interval_has_19_of_20_samples():
    samples = np.array([50.0, *range(101), np.nan, np.inf])  # the first is the value itself
    assert interval(samples) == Interval(50.0, 2.5, 97.5)


def scene(*boxes):
    """Return one image of two classes with objects at (category, box)."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (c, box) in enumerate(boxes, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "<b>dog & $co"}]
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 100}
    return {"images": [image], "annotations": annotations, "categories": categories}


OBJECTS = scene((1, [10, 10, 20, 20]), (2, [60, 60, 20, 20]))
FOUND = [
    result(1, 1, [10, 10, 20, 20], 0.95),  # right
    result(1, 1, [11, 10, 20, 20], 0.85),  # duplicate
    result(1, 1, [60, 60, 20, 20], 0.75),  # another class
    result(1, 2, [52, 60, 20, 20], 0.65),  # poor box: IoU 12 / 28
    result(1, 2, [10, 80, 10, 10], 0.55),  # background
]


def test_mistakes_are_told_apart(tmp_path):
    truth, matches = matches_of(evaluator_of(tmp_path, OBJECTS, lvis=False), FOUND, lvis=False)
    shown = [entry.scores for entry in matches]
    wrong = wrong_detections(matches, shown, [truth.content["annotations"]], 10)
    assert [(m.reason, m.score) for m in wrong] == [
        ("duplicate", 0.85),
        ("another class", 0.75),
        ("poor box", 0.65),
        ("background", 0.55),
    ]
    assert (wrong[1].detected, wrong[1].actual) == (0, 1) and wrong[1].actual_box == (60, 60, 20, 20)
    assert len(wrong_detections(matches, shown, [truth.content["annotations"]], 2)) == 2


def test_calibration_is_counted_by_hand(tmp_path):
    _, matches = matches_of(evaluator_of(tmp_path, OBJECTS, lvis=False), FOUND, lvis=False)
    measured = calibration(matches, [entry.scores for entry in matches], 0.6)
    np.testing.assert_array_equal(measured.counts, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert measured.error == pytest.approx((0.65 + 0.75 + 0.85 + 0.05) / 4)
    threshold, f1 = best_threshold(matches, [entry.scores for entry in matches])
    assert (threshold, f1) == (pytest.approx((0.95 + 0.85) / 2), pytest.approx(100 * 2 / 3))


@pytest.mark.parametrize(
    ("scores", "right", "threshold", "f1"),
    [
        ([0.9, 0.5, 0.5, 0.2], [1, 1, 0, 0], 0.35, 80.0),  # the two of 0.5 stay or go together
        ([0.2, 0.5, 0.5, 0.9], [0, 0, 1, 1], 0.35, 80.0),
        ([0.9, 0.5], [1, 1], 0.25, 100.0),
        ([0.0], [1], math.nan, math.nan),  # no threshold keeps a score of 0
        ([], [], math.nan, math.nan),
    ],
)
def test_the_threshold_of_the_highest_f1_lies_between_two_scores(scores, right, threshold, f1):
    flags = {"ignored": np.zeros((1, len(scores)), bool), "is_right": np.array([right], bool), "objects": np.array([2])}
    result = best_threshold([SimpleNamespace(**flags)], [np.array(scores)])
    assert result == pytest.approx((threshold, f1), nan_ok=True)


def test_the_temperature_that_scores_were_sharpened_with_is_found():
    random = np.random.default_rng(0)
    honest = random.uniform(0.05, 0.95, 40_000)
    right = random.random(len(honest)) < honest
    odds = (honest / (1 - honest)) ** 2.5  # too confident
    flags = {"ignored": np.zeros((1, len(honest)), bool), "is_right": right[None]}
    platt, calibrated = fit_platt([SimpleNamespace(**flags)], [odds / (1 + odds)], 0.0, with_bias=False)
    assert platt.temperature == pytest.approx(2.5, rel=0.05) and platt.bias == 0
    assert calibrated.error < 0.01 < calibration([SimpleNamespace(**flags)], [odds / (1 + odds)], 0.0).error
    never = SimpleNamespace(ignored=flags["ignored"], is_right=np.zeros_like(right)[None])
    assert np.isnan(fit_platt([never], [honest], 0.0)[0].temperature)


def test_temperature_and_bias_that_scores_were_moved_with_are_found():
    random = np.random.default_rng(0)
    honest = random.uniform(0.05, 0.95, 40_000)
    right = random.random(len(honest)) < honest
    log_odds = 2.5 * (np.log(honest / (1 - honest)) + 1.0)  # too confident, and too high
    shown = 1 / (1 + np.exp(-log_odds))
    matches = [SimpleNamespace(ignored=np.zeros((1, len(honest)), bool), is_right=right[None])]
    platt, calibrated = fit_platt(matches, [shown], 0.0)
    assert (platt.temperature, platt.bias) == pytest.approx((2.5, -1.0), rel=0.05)
    tempered = fit_platt(matches, [shown], 0.0, with_bias=False)[1]
    assert calibrated.error < 0.01 < 0.05 < tempered.error < calibration(matches, [shown], 0.0).error


def test_parameters_follow_each_other():
    """By hand: ((x / 2 + 1) / 4 + 3) is x / 8 + 3.25."""
    assert PlattParameters(2.0, 1.0).then(PlattParameters(4.0, 3.0)) == PlattParameters(8.0, 3.25)


def test_the_page_has_metrics_curves_calibration_and_images(tmp_path):
    Image.new("RGB", (100, 100), "gray").save(tmp_path / "a.png")
    evaluator = evaluator_of(tmp_path, OBJECTS, lvis=False)
    metrics = evaluator.metrics(FOUND)["bbox"]
    truth, _ = matches_of(evaluator, FOUND, lvis=False)
    log = tmp_path / "metrics.json"
    log.write_text("".join(json.dumps({"iteration": i, "total_loss": 1 / (i + 1)}) + "\n" for i in range(3)) + '{"it')
    page = write_page(
        tmp_path / "report.html",
        Evaluated(
            dataset="my <set>",
            protocol="two & classes",
            metrics=metrics,
            class_names=[category["name"] for category in OBJECTS["categories"]],
            class_groups={"novel": ["cat"], "base": ["<b>dog & $co"]},
            records=[{**record, "file_name": str(tmp_path / "a.png")} for record in evaluator.read_records()],
            truth=truth,
            results=FOUND,
            is_federated=False,
            shown=lambda scores: scores,
            training_log=log,
        ),
    ).read_text()
    assert page.count("<svg") == 3 and page.count("data:image/jpeg;base64,") >= 4
    assert "my &lt;set&gt;" in page and "two &amp; classes" in page and "<b>dog" not in page
    text = html.unescape(re.sub(r"<svg.*?</svg>|<[^>]*>", " ", page, flags=re.S))
    assert "1 images, 2 objects, 5 detections." in text
    for expected in ("cat, duplicate: 0.85", "cat on <b>dog & $co: 0.75", "Expected calibration error", "Training"):
        assert expected in text
    written = json.loads((tmp_path / "calibration.json").read_text())
    assert written["detections"] == 5 and written["threshold_of_highest_f1"] == pytest.approx((0.95 + 0.85) / 2)
    assert written["expected_calibration_error"] == pytest.approx(100 * (0.55 + 0.65 + 0.75 + 0.85 + 0.05) / 5)
    assert re.search(rf"all\s+2\s+{metrics['AP']:.1f}\s+\(", text)
    addresses = set(re.findall(r'http[^"<> ]*', page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses), addresses
