"""Parts of LP-OVOD against formulas in float64 (goldens `p`), through public functions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from regionclip.evaluation.coco import mean_ap50
from regionclip.methods.lp_ovod.retrieval import TopRegions, image_and_offset, retrieve
from regionclip.methods.lp_ovod.retrieved import StoredImage, retrieved_dataset
from regionclip.methods.lp_ovod.scoring import ScoreWeights, fuse_probabilities
from regionclip.modeling.heads.region_sampling import RegionSampler
from regionclip.modeling.losses.classification import sigmoid_focal
from regionclip.modeling.losses.pretraining import embedding_distillation
from regionclip.modeling.postprocess import DetectionSelector, GeometricMeanWithSigmoid, ProbabilityOnly
from regionclip.modeling.suppression import HardSuppression
from tests.helpers.paths import GOLDENS

UNITS = np.load(GOLDENS / "p_lp_ovod.npz")
NOVEL = torch.zeros(65, dtype=torch.bool)
NOVEL[[4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]] = True


def golden(key):
    return torch.from_numpy(UNITS[key])


def assert_close(actual, key, tolerance):
    expected = golden(key).to(actual.dtype)
    assert actual.shape == expected.shape
    assert float((actual.detach() - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1.0)


def test_the_focal_loss_of_base_classes():
    logits = golden("focal_base/logits").requires_grad_()
    loss = sigmoid_focal(logits, golden("focal_base/labels"))
    loss.backward()
    assert_close(loss, "focal_base/loss", 1e-6)
    assert_close(logits.grad, "focal_base/grad_logits", 1e-6)


def test_an_image_without_objects_has_a_loss():
    loss = sigmoid_focal(torch.zeros(3, 4), torch.full((3,), 4))
    assert float(loss) == pytest.approx(3 * 4 * 0.75 * 0.25 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("case", ["zero", "random"])
def test_the_focal_loss_of_probing(case):
    start = torch.zeros(17, 1024) if case == "zero" else golden("focal_probe/weights")
    weights = start.clone().requires_grad_()
    loss = sigmoid_focal(golden("focal_probe/features") @ weights.T, golden("focal_probe/labels17"))
    loss.backward()
    assert_close(loss, f"focal_probe/{case}/loss", 1e-6)
    assert_close(weights.grad, f"focal_probe/{case}/grad_weights", 1e-6)


def test_five_steps_of_probing():
    weights = torch.zeros(17, 1024, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1e-3, momentum=0.9, weight_decay=2.5e-5)
    losses = []
    for _ in range(5):
        loss = sigmoid_focal(golden("focal_probe/features") @ weights.T, golden("focal_probe/labels17"))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(UNITS["focal_probe/sgd_losses"].tolist(), rel=1e-6)
    assert_close(weights.sum(dim=1), "focal_probe/sgd_weights_sum", 1e-5)


def test_the_distillation_loss():
    embeddings = golden("kd/embeddings").requires_grad_()
    loss = float(UNITS["kd/weight"]) * embedding_distillation(embeddings, golden("kd/targets"))
    loss.backward()
    assert_close(loss, "kd/loss", 2e-6)
    assert_close(embeddings.grad, "kd/grad_embeddings", 2e-6)
    empty = embedding_distillation(torch.zeros(0, 512, requires_grad=True), torch.zeros(0, 512))
    assert float(empty) == 0 and empty.requires_grad


def images_of_the_golden():
    """Return features by image name, and the images in order."""
    counts = UNITS["retrieval/counts"].tolist()
    ids = UNITS["retrieval/image_ids_in_list_order"].tolist()
    sizes = {image: (width, height) for image, width, height in UNITS["retrieval/image_sizes"].tolist()}
    keys = {"feats": "embeddings_fp16", "boxes": "boxes", "objectness": "objectness"}
    parts = {key: golden(f"retrieval/{name}").split(counts) for key, name in keys.items()}
    features = {f"{image}.jpg": {key: part[i] for key, part in parts.items()} for i, image in enumerate(ids)}
    images = [
        StoredImage(f"{image}.jpg", image, *sizes[image], count) for image, count in zip(ids, counts, strict=True)
    ]
    return features, images


@pytest.mark.parametrize("rows_at_once", [7, 65536])
def test_retrieval_finds_the_published_regions_whatever_the_chunks(rows_at_once, monkeypatch):
    monkeypatch.setattr("regionclip.methods.lp_ovod.retrieval.ROWS_AT_ONCE", rows_at_once)
    features, images = images_of_the_golden()
    count, threshold = int(UNITS["retrieval/top_n"]), float(UNITS["retrieval/threshold"])
    found = retrieve(features.values(), golden("retrieval/text"), count, threshold)
    rows, cosines = torch.stack([best.rows for best in found]), torch.stack([best.cosines for best in found])
    assert torch.equal(rows, golden("retrieval/best_row").long())
    assert_close(cosines, "retrieval/best_cosine", 1e-6)
    category_ids = UNITS["retrieval/category_ids"].tolist()
    categories = [{"id": category, "name": str(category)} for category in category_ids]
    content = retrieved_dataset(found, category_ids, categories, images, features)
    ids, values = ("id", "image_id", "category_id"), ("area", "score", "cosine")
    table = [
        [*(entry[key] for key in ids), *entry["bbox"], *(entry[key] for key in values)]
        for entry in content["annotations"]
    ]
    expected = UNITS["retrieval/json_annotations"]
    assert np.array_equal(np.array(table)[:, :3], expected[:, :3])
    np.testing.assert_allclose(np.array(table)[:, [3, 4, 5, 6, 7]], expected[:, [3, 4, 5, 6, 7]], atol=1e-3)
    np.testing.assert_allclose(np.array(table)[:, 8:], expected[:, 8:], atol=1e-6)
    assert [image["id"] for image in content["images"]] == UNITS["retrieval/json_images_in_order"].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_equal_cosines_are_taken_in_order(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randint(-1, 2, (200, 3), generator=generator).double() + 0.01, dim=1)
    text = torch.eye(3)
    top = TopRegions(text, 20)
    sizes = torch.randint(1, 60, (20,), generator=generator).tolist()
    first = 0
    for size in sizes:
        part = rows[first : first + size]
        top.add(part, torch.arange(first, first + len(part)))
        first += len(part)
    for axis, best in enumerate(top.best):
        expected = (rows @ text.double().T)[:first, axis].round(decimals=9).argsort(descending=True, stable=True)[:20]
        assert torch.equal(best.rows, expected)


def test_fewer_regions_than_asked_for_are_no_error():
    features = [{"feats": torch.eye(4), "objectness": torch.tensor([0.9, 0.1, 0.7, 0.6])}]
    (best,) = retrieve(features, torch.eye(4)[2:3], 10, 0.6)
    assert best.rows.tolist() == [2, 0, 3]  # float32 0.6 reaches a threshold of 0.6
    (best,) = retrieve(features, torch.eye(4)[2:3], 10, 0.6, min_cosine=0.5)
    assert best.rows.tolist() == [2]
    (none,) = retrieve([], torch.eye(4)[2:3], 10, 0.6)
    assert none.rows.tolist() == []


def test_rows_of_the_published_file_belong_to_images():
    counts = UNITS["rows/counts"].tolist()
    places = image_and_offset(UNITS["rows/flat_row"].tolist(), counts)
    assert places == list(map(tuple, UNITS["rows/flat_row_to_list_index_and_offset"].tolist()))
    assert [0, *np.cumsum(counts).tolist()] == UNITS["rows/prefix"].tolist()
    for index, (first, last) in zip(UNITS["rows/list_index"].tolist(), UNITS["rows/range"].tolist(), strict=True):
        if first < last:
            assert image_and_offset([first, last - 1], counts) == [(index, 0), (index, counts[index] - 1)]


CASES = ["default", "no_objectness", "alpha02_beta04_tau002_test07", "base_model", "base_model_beta04_tau002"]


def fused(case):
    """Return the probabilities [70, 65] of a case, and whether the objectness takes part."""
    alpha, beta, temperature, novel_temperature, objectness, probe = UNITS[f"scores/{case}/params"].tolist()
    logits = torch.zeros(70, 65)
    logits[:, ~NOVEL], logits[:, NOVEL] = golden("scores/logits_base"), golden("scores/logits_novel")
    cosines = F.normalize(golden("scores/embeddings"), dim=1) @ golden("scores/text_fp16").float().T
    has_prototype = ~NOVEL if not probe else torch.ones(65, dtype=torch.bool)
    weights = ScoreWeights(alpha, beta, temperature, novel_temperature)
    return fuse_probabilities(logits, (cosines / temperature).softmax(dim=1), NOVEL, has_prototype, weights), objectness


def selector(objectness):
    fusion = GeometricMeanWithSigmoid() if objectness else ProbabilityOnly()
    return DetectionSelector(0.05, 100, fusion, HardSuppression(0.5), clips_boxes=False)


@pytest.mark.parametrize("case", CASES)
def test_scores(case):
    probabilities, objectness = fused(case)
    logits = golden("scores/objectness").logit()[:, None].expand_as(probabilities)
    scores = selector(objectness).fusion(probabilities, logits)
    assert_close(scores, f"scores/{case}/scores", 1e-6)


def test_clip_softmax():
    cosines = F.normalize(golden("scores/embeddings"), dim=1) @ golden("scores/text_fp16").float().T
    assert_close((cosines / 0.01).softmax(dim=1), "scores/clip_softmax", 1e-6)


@pytest.mark.parametrize("case", ["default", "no_objectness", "base_model"])
def test_detections(case):
    probabilities, objectness = fused(case)
    choose = selector(objectness)
    rest = torch.cat([probabilities, torch.zeros(70, 1)], dim=1)
    logits = golden("scores/objectness").logit()
    candidates = choose.candidates(golden("detections/boxes"), rest, logits, (1000, 1000))
    found, rows = choose.select(candidates, (1000, 1000))
    assert torch.equal(rows, golden(f"detections/{case}/row").long())
    assert torch.equal(found.pred_classes, golden(f"detections/{case}/label").long())
    assert_close(found.scores, f"detections/{case}/score", 1e-6)
    unlimited = DetectionSelector(0.05, None, choose.fusion, choose.suppression, clips_boxes=False)
    everything, _ = unlimited.select(candidates, (1000, 1000))
    assert len(everything) == int(UNITS[f"detections/{case}/num_before_limit"])


def test_few_detections():
    scores = torch.cat([golden("detections/few/scores"), torch.zeros(30, 1)], dim=1)
    found, rows = selector(objectness=False)(golden("detections/boxes")[:30], scores, torch.zeros(30), (1000, 1000))
    assert torch.equal(rows, golden("detections/few/row").long())
    assert torch.equal(found.pred_classes, golden("detections/few/label").long())


def test_how_many_regions_are_sampled():
    for truth, others, negatives, cap, positive, negative in UNITS["sampling/cases"].tolist():
        sampler = RegionSampler(512, 0.25, None if cap < 0 else cap)
        assert sampler.counts(truth + others, negatives) == (positive, negative)
        labels = torch.arange(truth + others + negatives) < truth + others
        rows = sampler(labels)
        assert int(labels[rows].sum()) == positive and len(rows) == positive + negative == len(rows.unique())


def test_the_means_of_class_groups():
    table = np.full((10, 101, 65, 4, 3), np.nan)
    table[0, :, :, 0, 2] = UNITS["evaluation/precision_iou50"]
    groups = [NOVEL.nonzero()[:, 0].tolist(), (~NOVEL).nonzero()[:, 0].tolist(), list(range(65))]
    means = [mean_ap50(table, members) / 100 for members in groups]
    assert means == pytest.approx(UNITS["evaluation/means"].tolist(), abs=1e-6)
