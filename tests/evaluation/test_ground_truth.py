"""Ground truth that is not as the libraries want it: metrics by hand, both libraries alike."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from regionclip.config.keys import get_cfg
from regionclip.data.datasets.cleaning import clean_records, clean_test_records
from regionclip.data.datasets.lvis import load_lvis
from regionclip.data.datasets.registered import read_records
from regionclip.data.test_loader import read_test_records
from regionclip.errors import UserError
from regionclip.evaluation.build import build_evaluator
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from tests.helpers.annotation_cases import added, base, both, every, first, polygon, rename_ids, without
from tests.helpers.evaluation import assert_same_metrics, mask_of, random_case, write

BACKENDS = ("faster", "official")


def lvis_base():
    """Return the base of the cases as LVIS has it: a class of each frequency, and lists of classes."""
    content = base()
    for image in content["images"]:
        image |= {"coco_url": f"http://x/val2017/{image['file_name']}", "neg_category_ids": [3]}
        image["not_exhaustive_category_ids"] = []
    for annotation, category in zip(content["annotations"], (1, 2, 2), strict=True):
        del annotation["iscrowd"]
        annotation["category_id"] = category
    content["categories"] = [{"id": i, "name": f"class {i}", "frequency": f} for i, f in ((1, "r"), (2, "c"), (3, "f"))]
    return content


def results_of(content):
    """Return perfect detections of the sound objects, in the order of the base, and a wrong one of an absent class."""
    sound = content["annotations"][:3]
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [float(v) for v in a["bbox"]],
            "score": 0.9,
        }
        for a in sound
    ]
    wrong = {"category_id": content["categories"][2]["id"], "bbox": [1.0, 1.0, 9.0, 9.0], "score": 0.99}
    return [*results, {**results[0], **wrong}]


LVIS_CASES = {
    "clean": lambda content: None,
    "neg null": every("images", neg_category_ids=None),
    "neg missing": without("images", "neg_category_ids"),
    "neg text": every("images", neg_category_ids="3"),
    "neg unknown": every("images", neg_category_ids=[3, 99, None]),
    "neg ids as text": every("images", neg_category_ids=["3"]),
    "not exhaustive null": every("images", not_exhaustive_category_ids=None),
    "not exhaustive missing": without("images", "not_exhaustive_category_ids"),
    "frequency from the number of images": both(
        without("categories", "frequency"),
        lambda content: [c.update(image_count=n) for c, n in zip(content["categories"], (10, 11, 101), strict=True)],
    ),
    "frequency odd": lambda content: [
        c.update(frequency=["r"], image_count=n) for c, n in zip(content["categories"], (1, 100, 900), strict=True)
    ],
    "annotation ids equal": rename_ids(annotations=lambda i: 7),
    "annotation ids missing": without("annotations", "id"),
    "image ids text": rename_ids(images=lambda i: f"i{i}"),
    "image ids as text here": every("annotations", image_id=str),
    "image ids huge": rename_ids(images=lambda i: 2**70 + i),
    "category ids as text": rename_ids(categories=str),
    "category ids as text here": every("annotations", category_id=str),
    "unknown image": added("annotations", {"image_id": 99}),
    "unknown category": added("annotations", {"category_id": 99}),
    "annotation null": added("annotations", None),
    "box missing": added("annotations", {"bbox": None}),
    "box flat": added("annotations", {"bbox": [1, 1, 0, 5]}),
    "boxes as text": every("annotations", bbox=lambda box: [str(value) for value in box]),
    "area missing": without("annotations", "area"),
    "masks missing": without("annotations", "segmentation"),
    "masks null": every("annotations", segmentation=None),
    "a crowd": first("annotations", iscrowd=1),
    "to ignore": first("annotations", ignore=1),
    "size missing": without("images", "width"),
}


@pytest.mark.parametrize("case", LVIS_CASES)
def test_lvis_files_give_the_metrics_of_clean_ones(case, tmp_path):
    content = lvis_base()
    LVIS_CASES[case](content)
    path = write(tmp_path / "lvis.json", content)
    ids = [category["id"] for category in content["categories"]]
    metrics = {
        backend: LVISDetectionEvaluator(path, tmp_path, category_ids=ids, backend=backend).metrics(results_of(content))
        for backend in BACKENDS
    }
    for name, value in metrics["faster"]["bbox"].items():
        assert value == pytest.approx(metrics["official"]["bbox"][name], rel=0, abs=1e-12, nan_ok=True), name
    # The third class has no object, so its wrong detection is in no metric.
    expected = {name: 100 for name in ("AP", "AP50", "AP75", "APs", "APr", "APc")} | {"APf": math.nan, "APl": math.nan}
    assert {name: metrics["faster"]["bbox"][name] for name in expected} == pytest.approx(expected, nan_ok=True)
    records, _ = clean_test_records(load_lvis(path, str(tmp_path)))
    assert [a["category_id"] for record in records for a in record["annotations"]] == [0, 1, 1]


def test_lvis_classes_of_unknown_frequency_are_in_no_group(tmp_path):
    content = lvis_base()
    del content["categories"][1]["frequency"]
    for backend in BACKENDS:
        evaluator = LVISDetectionEvaluator(
            write(tmp_path / "lvis.json", content), tmp_path, category_ids=[1, 2, 3], backend=backend
        )
        metrics = evaluator.metrics(results_of(content))["bbox"]
        assert (metrics["AP"], metrics["APr"]) == (pytest.approx(100), pytest.approx(100))
        assert math.isnan(metrics["APc"])


@pytest.mark.parametrize("first_id", [0, "-1", "bird"])
def test_lvis_classes_are_numbered_from_one(first_id, tmp_path):
    content = lvis_base()
    content["categories"][0]["id"] = first_id
    with pytest.raises(UserError, match=r"lvis.json: category class 1: expected an id of 1 or more"):
        load_lvis(write(tmp_path / "lvis.json", content), "images")


def test_lvis_images_need_an_address_or_a_name(tmp_path):
    content = lvis_base()
    content["images"][0]["coco_url"] = None
    path = write(tmp_path / "lvis.json", content)
    assert [record["file_name"] for record in load_lvis(path, "images")] == ["images/a.png", "images/val2017/b.png"]
    del content["images"][0]["file_name"]
    with pytest.raises(UserError, match="image 1: expected a file_name, got None"):
        load_lvis(write(tmp_path / "lvis.json", content), "images")


MASK_DAMAGE = {
    "none": None,
    "empty": [],
    "four numbers": [[1, 2, 3, 4]],
    "odd": [[1, 2, 3, 4, 5, 6, 7]],
    "text": "polygon",
    "NaN": [[1, 2, 3, 4, 5, math.nan]],
    "run lengths of another size": {"size": [3, 3], "counts": [9]},
    "run lengths without counts": {"size": [200, 200]},
    "run lengths below zero": {"size": [200, 200], "counts": [-1, 40001]},
}


@pytest.mark.parametrize("damage", MASK_DAMAGE)
@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_objects_without_a_mask_are_no_objects_for_masks(lvis, damage, tmp_path):
    truth, results = random_case(0, lvis=lvis)
    results = results[:200]
    ids, names = zip(*((c["id"], c["name"]) for c in truth["categories"]), strict=True)
    damaged = copy.deepcopy(truth)
    box = [10, 10, 20, 20]
    # An object of its own, whose mask is all that is wrong.
    extra = {"image_id": 11, "category_id": ids[0], "bbox": box, "area": 400, "iscrowd": 0}
    truth["annotations"].append({**extra, "id": 10**6, "segmentation": [polygon(*box)]})
    damaged["annotations"].append({**extra, "id": 10**6, "segmentation": MASK_DAMAGE[damage]})
    without_it = copy.deepcopy(truth) | {"annotations": truth["annotations"][:-1]}

    def metrics_of(content, backend):
        path = write(tmp_path / "truth.json", content)
        if lvis:
            return LVISDetectionEvaluator(path, tmp_path, category_ids=ids, backend=backend).metrics(results)
        evaluator = COCODetectionEvaluator(path, tmp_path, class_names=names, category_ids=ids, backend=backend)
        return evaluator.metrics(results)

    found = metrics_of(damaged, "faster")
    assert_same_metrics(found, metrics_of(damaged, "official"))
    assert found["bbox"] == pytest.approx(metrics_of(truth, "faster")["bbox"], nan_ok=True)
    assert found["segm"] == pytest.approx(metrics_of(without_it, "faster")["segm"], nan_ok=True)


def test_polygons_with_an_area_are_kept_beside_broken_ones(tmp_path):
    content = base()
    content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    results = [
        {**result, "segmentation": mask} for result, mask in zip(results_of(lvis_base())[:1], [None], strict=True)
    ]
    box = content["annotations"][0]["bbox"]
    for image in content["images"]:
        image |= {"width": 200, "height": 200}
    results[0] |= {"category_id": 1, "segmentation": mask_of(box)}
    evaluator = COCODetectionEvaluator(
        write(tmp_path / "truth.json", content), tmp_path, class_names=["lamp"], category_ids=[1]
    )
    # An ellipse fills pi / 4 = 0.785 of its box: right for the thresholds 0.5 ... 0.75; one of three objects.
    assert evaluator.metrics(results)["segm"]["AP"] == pytest.approx(100 * 34 / 101 * 6 / 10)


def record(number, **changes):
    annotation = {"bbox": [10, 8, 30, 32], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    image = {"file_name": f"{number}.png", "image_id": f"image {number}", "width": 96, "height": 64}
    return {**image, "annotations": [annotation], **changes}


@pytest.fixture
def function():
    """Register a function of a user's, and metadata."""
    name = "tests_function"

    def register(records, **metadata):
        DatasetCatalog.register(name, lambda: copy.deepcopy(records))
        MetadataCatalog.get(name).set(**{"evaluator_type": "coco"} | metadata)
        return name

    yield register
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_without_a_file_is_its_own_ground_truth(backend, function, tmp_path):
    cfg = get_cfg()
    cfg.TEST.EVALUATION_BACKEND = backend
    name = function([record(1), record(2, annotations=[])], thing_classes=["lamp", "other"])
    evaluator = build_evaluator(cfg, name, tmp_path, 2)
    found = {"image_id": "image 1", "category_id": 0, "bbox": [10.0, 8.0, 20.0, 24.0], "score": 0.9}
    assert evaluator.metrics([found])["bbox"]["AP"] == pytest.approx(100)
    assert json.loads(json.dumps(evaluator.category_ids)) == [0, 1]


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_a_function_has_to_name_its_classes(kind, function, tmp_path):
    with pytest.raises(UserError, match="expected the names of its classes, got none"):
        build_evaluator(get_cfg(), function([record(1)], evaluator_type=kind), tmp_path, 1)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(1), record(1, file_name="other.png")], "image 1 for 1.png and for other.png"),
        ([record(1), record(2, image_id=None)], "2.png: expected an image_id, got None"),
        ([record(1, file_name=None)], "record 0: expected a file_name, got None"),
        ([record(1, annotations=7)], "annotations of 1.png: expected a list, got int"),
        ([None], "expected a readable dataset, got TypeError"),
        ([], "AssertionError"),
    ],
)
def test_records_of_a_function_need_ids(records, message, function):
    with pytest.raises(UserError, match=message):
        read_records(function(records))


ODD_OBJECTS = {
    "numbers of NumPy": ({"bbox": np.array([10.0, 8, 30, 32]), "category_id": np.int64(0)}, 1),
    "a tensor": ({"bbox": torch.tensor([10.0, 8, 30, 32])}, 1),
    "no mode": ({"bbox_mode": None}, 0),
    "another mode": ({"bbox_mode": "xywh"}, 0),
    "fractions": ({"bbox_mode": BoxMode.XYXY_REL, "bbox": [0.1, 0.1, 0.5, 0.5]}, 0),
    "rotated": ({"bbox_mode": BoxMode.XYWHA_ABS, "bbox": [1, 2, 3, 4, 5]}, 0),
    "a class without a number": ({"category_id": "lamp"}, 0),
    "a crowd of NumPy": ({"iscrowd": np.bool_(True)}, 1),
}


@pytest.mark.parametrize("odd", ODD_OBJECTS)
def test_objects_of_a_function_are_used_or_counted(odd, function, caplog):
    changes, kept = ODD_OBJECTS[odd]
    objects = record(1)["annotations"]
    image = record(1, annotations=[objects[0] | changes], width=np.int64(96))
    (cleaned,) = read_test_records(get_cfg(), function([image], thing_classes=["lamp"]))
    assert len(cleaned["annotations"]) == kept
    trained, _ = clean_records([image], 1)
    assert len(trained) == (kept and not cleaned["annotations"][0]["iscrowd"])


def test_classes_beyond_those_of_a_function_are_left_out(function, caplog):
    odd = [record(1), record(2)]
    odd[1]["annotations"] = [{**odd[1]["annotations"][0], "category_id": 7}]
    cleaned = read_test_records(get_cfg(), function(odd, thing_classes=["lamp"]))
    assert [len(image["annotations"]) for image in cleaned] == [1, 0]


def test_names_that_two_classes_share_are_told_apart(tmp_path, function):
    name = function([record(1)], thing_classes=["bat", "ball", "bat"])
    evaluator = build_evaluator(get_cfg(), name, tmp_path, 3)
    found = {"image_id": "image 1", "category_id": 0, "bbox": [10.0, 8.0, 20.0, 24.0], "score": 0.9}
    metrics = evaluator.metrics([found])["bbox"]
    assert metrics["AP-bat (0)"] == pytest.approx(100)
    assert math.isnan(metrics["AP-bat (2)"])


def test_areas_come_from_annotation_mask_or_box(tmp_path):
    # A box of 40 x 40 pixels, between small (below 32 x 32) and large (above 96 x 96).
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40]}
    triangle = [[0, 0, 40, 0, 0, 40]]
    for changes, group in (({"area": 10**6}, "APl"), ({"segmentation": triangle}, "APs"), ({}, "APm")):
        content = base() | {"annotations": [box | changes]}
        for backend in BACKENDS:
            evaluator = COCODetectionEvaluator(
                write(tmp_path / "truth.json", content),
                tmp_path,
                class_names=["lamp"],
                category_ids=[1],
                backend=backend,
            )
            found = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 40.0, 40.0], "score": 0.9}
            metrics = evaluator.metrics([found])["bbox"]
            assert [name for name in ("APs", "APm", "APl") if not math.isnan(metrics[name])] == [group]
