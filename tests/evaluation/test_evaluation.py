import copy
import json
import logging
import math

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

import regionclip.data.datasets.builtin  # noqa: F401 - registers the datasets
from regionclip.config.keys import get_cfg
from regionclip.errors import UserError
from regionclip.evaluation.build import build_evaluator
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.lvis import LVISDetectionEvaluator, limit_detections
from regionclip.evaluation.predictions import PredictionWriter
from tests.helpers.evaluation import (
    SIDE,
    assert_same_metrics,
    mask_of,
    polygon,
    random_case,
    result,
    uncompressed,
    write,
)

COCO_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
LVIS_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


@pytest.mark.parametrize("seed", [0, 1])
def test_coco_backends_agree(tmp_path, seed):
    truth, results = random_case(seed, lvis=False)
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"]) > 3
    assert len({r["score"] for r in results}) < len(results) / 10
    names = [category["name"] for category in truth["categories"]]
    metrics = {
        backend: COCODetectionEvaluator(
            write(tmp_path / "truth.json", truth),
            tmp_path,
            class_names=names,
            category_ids=[category["id"] for category in truth["categories"]],
            class_groups={"novel": names[:2], "base": names[2:]},
            backend=backend,
        ).metrics(copy.deepcopy(results))
        for backend in ("faster", "official")
    }
    assert_same_metrics(metrics["faster"], metrics["official"])
    for task in ("bbox", "segm"):
        values = metrics["faster"][task]
        assert list(values) == [*COCO_METRICS, *(f"AP-{n}" for n in names), "AP50-novel", "AP50-base", "AP50-all"]
        assert [name for name, value in values.items() if math.isnan(value)] == ["AP-class6"]
        assert 0 < values["AP"] < values["AP50"] < 100


@pytest.mark.parametrize(("seed", "at_once"), [(0, 64), (1, 64), (0, 3), (1, 1)])
def test_lvis_backends_agree(tmp_path, monkeypatch, seed, at_once):
    monkeypatch.setattr("regionclip.evaluation.lvis.CLASSES_AT_ONCE", at_once)
    truth, results = random_case(seed, lvis=True)
    assert max(sum(r["image_id"] == image["id"] for r in results) for image in truth["images"]) > 300
    metrics = {
        backend: LVISDetectionEvaluator(
            write(tmp_path / "truth.json", truth),
            tmp_path,
            category_ids=[category["id"] for category in truth["categories"]],
            backend=backend,
        ).metrics(copy.deepcopy(results))
        for backend in ("faster", "official")
    }
    assert_same_metrics(metrics["faster"], metrics["official"])
    for task in ("bbox", "segm"):
        assert list(metrics["faster"][task]) == LVIS_METRICS
        assert 0 < metrics["faster"][task]["AP"] < metrics["faster"][task]["AP50"] < 100


def coco_truth(categories, boxes, images=5):
    """Return ground truth of box tuples (image, category, box) or (image, category, box, iscrowd)."""
    return {
        "info": {},
        "images": [{"id": i, "height": SIDE, "width": SIDE, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(bool(crowd)),
                "segmentation": uncompressed(mask_of(box)) if crowd else polygon(box),
            }
            for number, (image, category, box, *crowd) in enumerate(boxes, 1)
        ],
    }


def detections(rows, masks=False):
    """Return the model's output of rows (class number, box [x, y, w, h], score)."""
    instances = Instances((SIDE, SIDE))
    boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h), _ in rows], dtype=torch.float32)
    instances.pred_boxes = Boxes(boxes.reshape(-1, 4))
    instances.pred_classes = torch.tensor([number for number, _, _ in rows], dtype=torch.int64)
    instances.scores = torch.tensor([score for _, _, score in rows], dtype=torch.float32)
    if masks:
        instances.pred_masks = torch.zeros(len(rows), SIDE, SIDE, dtype=torch.bool)
        for mask, (_, (x, y, w, h), _) in zip(instances.pred_masks, rows, strict=True):
            mask[y : y + h, x : x + w] = True
    return {"instances": instances}


PERSON, CAR, CAT, BUS, DOG, ELEPHANT, SHEEP, BIRD = 1, 3, 17, 6, 18, 22, 20, 16
HERE, THERE, FAR = [10, 10, 20, 20], [100, 100, 20, 20], [150, 20, 20, 20]

FIVE_IMAGES = [
    *((image, PERSON, HERE) for image in (1, 2, 3, 4, 5)),
    *((image, CAR, THERE) for image in (1, 2, 3, 4)),
    (1, CAT, FAR),
    (2, CAT, FAR),
    (3, BUS, FAR),
    (4, ELEPHANT, FAR),
    (5, SHEEP, FAR),
    (5, SHEEP, [20, 60, 60, 60], True),
    (3, BIRD, [60, 150, 20, 20]),
]

FIVE_IMAGE_DETECTIONS = {
    1: [(PERSON, HERE, 0.9), (CAR, THERE, 0.9), (CAT, FAR, 0.9), (DOG, THERE, 0.8)],
    2: [(PERSON, HERE, 0.8), (CAR, FAR, 0.8), (CAT, [150, 20, 20, 8], 0.8)],
    3: [
        (PERSON, HERE, 0.7),
        (CAR, THERE, 0.7),
        (BUS, THERE, 0.95),
        (BUS, FAR, 0.5),
        (BIRD, [60, 150, 20, 13.2], 0.3),
    ],
    4: [(PERSON, HERE, 0.6)],
    5: [
        (PERSON, HERE, 0.5),
        (CAR, THERE, 0.6),
        (SHEEP, [30, 70, 20, 20], 0.99),
        (SHEEP, [50, 70, 20, 20], 0.98),
        (SHEEP, FAR, 0.5),
    ],
}

# AP is the mean, over the recalls 0, 0.01 ... 1, of the best precision at this or a higher recall.
HAND_AP50 = {
    # All five found, nothing else.
    "person": 1.0,
    # Right, wrong, right, wrong: precision 1 at recall 1/4 and 2/3 at 2/4, nothing beyond. 26 recalls
    # are at most 0.25, another 25 at most 0.5.
    "car": (26 * 1 + 25 * 2 / 3) / 101,
    # One of two found first; the other overlaps 8/20 only. 51 recalls are at most 0.5.
    "cat": 51 / 101,
    # A wrong one before the right one: precision 1/2 at recall 1.
    "bus": 0.5,
    # Never found.
    "elephant": 0.0,
    # The two best lie in the crowd region and do not count.
    "sheep": 1.0,
    # Overlap 13.2/20 = 0.66.
    "bird": 1.0,
}
NOVEL, BASE = ("cat", "bus", "elephant"), ("person", "car", "sheep", "bird")


def percent(values):
    return pytest.approx(100 * sum(values) / len(values), abs=1e-9)


@pytest.fixture
def five_images(tmp_path):
    """Evaluate the five images with all 65 classes; most have no object, `dog` only a wrong detection."""
    metadata = MetadataCatalog.get("coco_2017_ovd_all_test")
    position = metadata.thing_dataset_id_to_contiguous_id
    categories = dict(zip(position, metadata.thing_classes, strict=True))

    def evaluate(backend):
        evaluator = COCODetectionEvaluator(
            write(tmp_path / "truth.json", coco_truth(categories, FIVE_IMAGES)),
            tmp_path / "output",
            class_names=metadata.thing_classes,
            category_ids=list(position),
            class_groups=metadata.class_groups,
            backend=backend,
        )
        evaluator.reset()
        for image, rows in FIVE_IMAGE_DETECTIONS.items():
            evaluator.process([{"image_id": image}], [detections([(position[c], b, s) for c, b, s in rows])])
        return evaluator.evaluate()

    return evaluate


@pytest.mark.parametrize("backend", ["faster", "official"])
def test_novel_base_and_all_ap50_are_those_computed_by_hand(five_images, backend):
    metrics = five_images(backend)
    assert metrics.keys() == {"bbox"}
    assert metrics["bbox"]["AP50-novel"] == percent([HAND_AP50[name] for name in NOVEL])
    assert metrics["bbox"]["AP50-base"] == percent([HAND_AP50[name] for name in BASE])
    assert metrics["bbox"]["AP50-all"] == percent(HAND_AP50.values())
    assert metrics["bbox"]["AP50"] == percent(HAND_AP50.values())


@pytest.mark.parametrize("backend", ["faster", "official"])
def test_ap_of_each_class_is_that_computed_by_hand(five_images, backend):
    metrics = five_images(backend)["bbox"]
    # The bird's overlap of 0.66 suffices for 4 of the 10 thresholds 0.5, 0.55 ... 0.95; all others
    # are exact or far off.
    expected = HAND_AP50 | {"bird": 0.4}
    assert {name: metrics[f"AP-{name}"] for name in expected} == {n: percent([v]) for n, v in expected.items()}
    assert metrics["AP"] == percent(expected.values())
    others = [value for name, value in metrics.items() if name.startswith("AP-") and name[3:] not in expected]
    assert len(others) == 58
    assert all(math.isnan(value) for value in others)


def test_log_has_the_lines_of_upstream_as_fractions(five_images, caplog):
    logger = logging.getLogger("regionclip.evaluation.coco")
    caplog.set_level(logging.INFO, logger=logger.name)
    logger.addHandler(caplog.handler)  # a run that set up logging before may have cut the way to the root
    try:
        five_images("faster")
    finally:
        logger.removeHandler(caplog.handler)
    lines = {message for message in caplog.messages if "AP50_split_" in message}
    found = {line.split("AP50_split_")[1].split(" AP: ")[0]: float(line.split(" AP: ")[1]) for line in lines}
    assert found == {
        "target": pytest.approx(sum(HAND_AP50[name] for name in NOVEL) / 3, abs=1e-12),
        "base": pytest.approx(sum(HAND_AP50[name] for name in BASE) / 4, abs=1e-12),
        "all": pytest.approx(sum(HAND_AP50.values()) / 7, abs=1e-12),
    }


def test_dataset_without_groups_has_no_group_metrics(tmp_path):
    truth = write(tmp_path / "truth.json", coco_truth({5: "ball"}, [(1, 5, HERE)]))
    evaluator = COCODetectionEvaluator(truth, tmp_path, class_names=["ball"], category_ids=[5])
    metrics = evaluator.metrics([result(1, 5, HERE, 0.5)])["bbox"]
    assert list(metrics) == [*COCO_METRICS, "AP-ball"]
    # The box of 400 pixels is small (below 32 x 32).
    assert (metrics["AP"], metrics["APs"], metrics["AR1"]) == (100, 100, 100)
    assert math.isnan(metrics["APm"])
    assert math.isnan(metrics["ARl"])


def lvis_truth(annotations, images, frequencies):
    """Return ground truth of annotations (image, category, box) and images {id: (negative, not exhaustive)}."""
    return {
        "images": [
            {
                "id": image,
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": negative,
                "not_exhaustive_category_ids": not_exhaustive,
            }
            for image, (negative, not_exhaustive) in images.items()
        ],
        "categories": [{"id": i, "name": f"class{i}", "frequency": f} for i, f in frequencies.items()],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": polygon(box),
            }
            for number, (image, category, box) in enumerate(annotations, 1)
        ],
    }


@pytest.fixture(params=["faster", "official"])
def lvis_evaluator(request, tmp_path):
    def make(truth):
        file = write(tmp_path / "truth.json", truth)
        ids = [category["id"] for category in truth["categories"]]
        return LVISDetectionEvaluator(file, tmp_path / "output", category_ids=ids, backend=request.param)

    return make


def test_lvis_counts_false_positives_only_where_classes_were_checked(lvis_evaluator):
    truth = lvis_truth(
        [(1, 1, HERE), (1, 2, HERE), (1, 3, HERE)],
        {1: ([], [3]), 2: ([2], [])},
        {1: "f", 2: "c", 3: "r"},
    )
    evaluator = lvis_evaluator(truth)
    evaluator.process(
        [{"image_id": 1}, {"image_id": 2}],
        [
            detections([(0, HERE, 0.5), (1, HERE, 0.5), (2, HERE, 0.5), (2, FAR, 0.9)]),
            detections([(0, FAR, 0.9), (1, FAR, 0.9)]),
        ],
    )
    metrics = evaluator.evaluate()["bbox"]
    # Class 1 was not looked for in image 2, class 3 not exhaustively in image 1: no false positives.
    # Class 2 has one before its object: precision 1/2 at recall 1.
    assert metrics["APf"] == percent([1])
    assert metrics["APr"] == percent([1])
    assert metrics["APc"] == percent([0.5])
    assert metrics["AP"] == percent([1, 0.5, 1])
    assert math.isnan(metrics["APl"])


@pytest.mark.parametrize(("better", "expected"), [(299, 100), (300, 0)])
def test_lvis_looks_at_300_detections_of_an_image(lvis_evaluator, better, expected):
    truth = lvis_truth([(1, 1, HERE)], {1: ([2], [])}, {1: "r", 2: "f"})
    results = [result(1, 1, HERE, 0.1), *(result(1, 2, FAR, 0.9) for _ in range(better))]
    assert lvis_evaluator(truth).metrics(results)["bbox"]["AP"] == pytest.approx(expected, abs=1e-9)


def test_lvis_masks_on_an_image_with_only_unchecked_classes(lvis_evaluator):
    # Image 2 has no objects, and class 1 was not looked for in it.
    truth = lvis_truth([(1, 1, HERE)], {1: ([], []), 2: ([2], [])}, {1: "f", 2: "c"})
    evaluator = lvis_evaluator(truth)
    evaluator.process(
        [{"image_id": 1}, {"image_id": 2}],
        [detections([(0, HERE, 0.5)], masks=True), detections([(0, FAR, 0.9)], masks=True)],
    )
    metrics = evaluator.evaluate()
    assert metrics["bbox"]["AP"] == percent([1])
    assert metrics["segm"]["AP"] == percent([1])


@pytest.mark.parametrize("annotations", [[], None], ids=["empty", "missing"])
def test_lvis_file_without_annotations_gives_nan(lvis_evaluator, annotations):
    # The test-dev and test-challenge files hold no ground truth.
    truth = lvis_truth([], {1: ([], [])}, {1: "r", 2: "c", 3: "f"}) | {"annotations": annotations}
    if annotations is None:
        del truth["annotations"]
    metrics = lvis_evaluator(truth).metrics([result(1, 1, HERE, 0.5)])["bbox"]
    assert list(metrics) == LVIS_METRICS
    assert all(math.isnan(value) for value in metrics.values())


def test_best_detections_of_each_image_are_kept():
    scores = {7: [0.1, 0.9, 0.5, 0.5, 0.5], 8: [0.3, 0.2], 9: [0.2, 0.4, 0.3]}
    results = [
        {"image_id": image, "score": values[i], "place": i}
        for i in range(5)
        for image, values in scores.items()
        if i < len(values)
    ]
    before = copy.deepcopy(results)
    kept = {(r["image_id"], r["place"]) for r in limit_detections(results, 3)}
    # Of three equal scores of image 7, the first two have room.
    assert kept == {(7, 1), (7, 2), (7, 3), (8, 0), (8, 1), (9, 0), (9, 1), (9, 2)}
    assert results == before
    assert not list(limit_detections([], 3))


def test_no_detections_at_all_give_nan(tmp_path):
    coco = write(tmp_path / "coco.json", coco_truth({5: "ball"}, [(1, 5, HERE)]))
    lvis = write(tmp_path / "lvis.json", lvis_truth([(1, 1, HERE)], {1: ([], [])}, {1: "f"}))
    for backend in ("faster", "official"):
        evaluators = {
            tuple(COCO_METRICS): COCODetectionEvaluator(
                coco, tmp_path, class_names=["ball"], category_ids=[5], backend=backend
            ),
            tuple(LVIS_METRICS): LVISDetectionEvaluator(lvis, tmp_path, category_ids=[1], backend=backend),
        }
        for names, evaluator in evaluators.items():
            evaluator.process([{"image_id": 1}], [detections([])])
            metrics = evaluator.evaluate()["bbox"]
            assert set(names) <= set(metrics)
            assert all(math.isnan(value) for value in metrics.values())
            assert json.loads(evaluator.results_file.read_text()) == []


def test_predictions_are_written_in_the_published_files(tmp_path):
    writer = PredictionWriter(tmp_path / "inference", "lvis_instances_results.json", [4, 9])
    writer.process([{"image_id": 70}], [detections([(1, [10, 20, 30, 40], 0.5), (0, [0, 0, 2, 1], 0.25)])])
    writer.process([{"image_id": 71}, {"image_id": 72}], [detections([]), detections([(1, [1, 2, 3, 4], 0.75)])])
    assert writer.evaluate() == {}
    assert sorted(path.name for path in (tmp_path / "inference").iterdir()) == [
        "instances_predictions.pth",
        "lvis_instances_results.json",
    ]
    assert json.loads((tmp_path / "inference/lvis_instances_results.json").read_text()) == [
        {"image_id": 70, "category_id": 9, "bbox": [10, 20, 30, 40], "score": 0.5},
        {"image_id": 70, "category_id": 4, "bbox": [0, 0, 2, 1], "score": 0.25},
        {"image_id": 72, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.75},
    ]
    # As upstream, this file numbers the classes contiguously and lists every image.
    predictions = torch.load(tmp_path / "inference/instances_predictions.pth", weights_only=True)
    assert [(p["image_id"], [i["category_id"] for i in p["instances"]]) for p in predictions] == [
        (70, [1, 0]),
        (71, []),
        (72, [1]),
    ]


def test_masks_are_written_as_compressed_rle(tmp_path):
    writer = PredictionWriter(tmp_path, "results.json", [1])
    writer.process([{"image_id": 1}], [detections([(0, [10, 20, 30, 40], 0.5)], masks=True)])
    writer.evaluate()
    (written,) = json.loads((tmp_path / "results.json").read_text())
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[20:60, 10:40] = 1
    np.testing.assert_array_equal(pycocotools.mask.decode(written["segmentation"]), expected)


def test_reset_forgets_predictions(tmp_path):
    writer = PredictionWriter(tmp_path, "results.json", [1])
    writer.process([{"image_id": 1}], [detections([(0, HERE, 0.5)])])
    writer.reset()
    writer.evaluate()
    assert json.loads((tmp_path / "results.json").read_text()) == []


@pytest.fixture
def cfg():
    return get_cfg()


@pytest.fixture
def dataset():
    """Register names for a test only."""
    names = []

    def register(name, **metadata):
        names.append(name)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)


@pytest.mark.parametrize(
    ("name", "kind", "file", "ids"),
    [
        ("coco_2017_ovd_t_test", COCODetectionEvaluator, "coco_instances_results.json", [5, 6, 17, 18]),
        ("lvis_v1_val", LVISDetectionEvaluator, "lvis_instances_results.json", list(range(1, 1204))),
        ("lvis_v1_val_custom_img", PredictionWriter, "lvis_instances_results.json", list(range(1, 1204))),
        ("lvis_v1_train_custom_img", PredictionWriter, "lvis_instances_results.json", list(range(1, 1204))),
    ],
)
def test_evaluator_follows_the_dataset(cfg, tmp_path, name, kind, file, ids):
    evaluator = build_evaluator(cfg, name, tmp_path / "inference", 1203)
    assert type(evaluator) is kind
    assert evaluator.results_file == tmp_path / "inference" / file
    assert evaluator.category_ids[: len(ids)] == ids


@pytest.mark.parametrize("backend", ["faster", "official"])
def test_classes_of_a_stock_coco_set_are_learnt_from_its_file(cfg, tmp_path, dataset, backend):
    cfg.TEST.EVALUATION_BACKEND = backend
    truth = write(tmp_path / "truth.json", coco_truth({30: "ball", 20: "toy"}, [(1, 30, HERE), (1, 20, FAR)], 1))
    name = dataset("tests_stock_coco")
    register_coco_instances(name, {}, truth, str(tmp_path))
    evaluator = build_evaluator(cfg, name, tmp_path / "output", 1203)
    # Ids ascend: toy is class 0, ball class 1. The ball is found, the toy is not.
    evaluator.process([{"image_id": 1}], [detections([(1, HERE, 0.5)])])
    metrics = evaluator.evaluate()["bbox"]
    assert (metrics["AP-ball"], metrics["AP-toy"]) == (pytest.approx(100), 0)


def test_base_set_has_the_metric_of_its_own_group(cfg, tmp_path, dataset):
    base = MetadataCatalog.get("coco_2017_ovd_b_test")
    position = base.thing_dataset_id_to_contiguous_id
    categories = dict(zip(position, base.thing_classes, strict=True))
    name = dataset(
        "tests_base_coco",
        evaluator_type="coco",
        json_file=write(tmp_path / "truth.json", coco_truth(categories, [(1, CAR, HERE), (1, BIRD, FAR)], 1)),
        thing_classes=base.thing_classes,
        thing_dataset_id_to_contiguous_id=position,
        class_groups=base.class_groups,
    )
    evaluator = build_evaluator(cfg, name, tmp_path / "output", 1203)
    evaluator.process([{"image_id": 1}], [detections([(position[CAR], HERE, 0.5)])])
    groups = {k: v for k, v in evaluator.evaluate()["bbox"].items() if k.startswith("AP50-")}
    assert groups == {"AP50-base": percent([1, 0]), "AP50-all": percent([1, 0])}


@pytest.mark.parametrize("kind", ["cityscapes_instance", None])
def test_other_datasets_are_refused(cfg, tmp_path, dataset, kind):
    name = dataset("tests_other", **({"evaluator_type": kind} if kind else {}))
    with pytest.raises(UserError, match=name):
        build_evaluator(cfg, name, tmp_path, 1203)
