"""Each case of an annotation file through evaluation with both libraries, training, and user boxes."""

import logging
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.events import EventStorage

from regionclip.config.loading import load_config
from regionclip.data.datasets.annotation_file import _report
from regionclip.data.training_loader import read_training_data, training_batches
from regionclip.data.user_boxes import ImageBoxes, boxes_by_image, check_boxes, read_boxes
from regionclip.engine.evaluation.evaluate import evaluate, prepare_evaluation
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.annotation_cases import CASES, HEIGHT, WIDTH, write_images
from tests.helpers.detectors import TINY, flat
from tests.helpers.paths import REPOSITORY

ZERO_SHOT = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml"
FINE_TUNING = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd.yaml"
EVERY = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
EXPECTED_IN_TRAINING = {"annotations null", "annotations empty"}
"""Cases that training refuses in other words."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def options(embedding_file):
    one_class = {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("one", 1, 32), "MODEL.ROI_HEADS.NUM_CLASSES": "1"}
    sides = {"INPUT.MIN_SIZE_TEST": "64", "INPUT.MIN_SIZE_TRAIN": "(48,)", "SOLVER.IMS_PER_BATCH": "2"}
    return TINY | one_class | sides | {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16"}


@pytest.fixture(scope="module")
def tested(options):
    model = build_model(load_config(ZERO_SHOT, flat(options | {"MODEL.CLIP.CROP_REGION_TYPE": "GT"}))).eval()
    return fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"]) or model


@pytest.fixture(scope="module")
def trained(options):
    model = build_model(load_config(FINE_TUNING, flat(options))).train()
    return fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"]) or model


@pytest.fixture
def said(caplog):
    """Return the messages of a test, which tells them as if no test before had."""
    _report.cache_clear()
    package = logging.getLogger("regionclip")
    package.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, logger="regionclip")
    yield lambda: list(dict.fromkeys(record.getMessage() for record in caplog.records if record.levelno >= 30))
    package.removeHandler(caplog.handler)


@pytest.fixture
def dataset(images, tmp_path):
    """Register the file of a case as the recipe of docs/training.md does."""
    names = []

    def register(case):
        names.append(f"annotation_case_{tmp_path}")
        case.write(tmp_path / "case.json", images)
        register_coco_instances(names[0], {}, str(tmp_path / "case.json"), str(images))
        return names[0]

    yield register
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(names[0], None)


def require_words(case, said):
    """Whatever is left out is said in one line, and nothing else is."""
    lines = [line for line in said if "Skipped" not in line]
    assert [line for line in lines if case.said in line] == lines if case.said else lines == []
    assert len(lines) == bool(case.said)


@EVERY
def test_both_libraries_evaluate_it_alike(case, dataset, options, tested, said, tmp_path):
    name = dataset(case)
    metrics = []
    for backend in ("faster", "official"):
        merged = options | {"MODEL.CLIP.CROP_REGION_TYPE": "GT", "DATASETS.TEST": f"('{name}',)"}
        merged |= {"OUTPUT_DIR": str(tmp_path / backend), "TEST.EVALUATION_BACKEND": backend}
        cfg = load_config(ZERO_SHOT, flat(merged))
        if case.refused:
            with pytest.raises(UserError) as error:
                prepare_evaluation(cfg)
            assert case.said in str(error.value)
            continue
        (report,) = evaluate(cfg, tested, prepare_evaluation(cfg)).values()
        assert [case.failed in failure for failure in report.failures] == [True] * bool(case.failed)
        metrics.append(report.metrics["bbox"])
    if not case.refused:
        require_words(case, said())
        assert metrics[0]["AP"] == pytest.approx(case.ap, abs=1e-9)
        assert metrics[0].keys() == metrics[1].keys()
        for key, value in metrics[0].items():
            assert value == pytest.approx(metrics[1][key], rel=0, abs=1e-12, nan_ok=True), key


@EVERY
def test_training_accepts_what_evaluation_accepts(case, dataset, options, trained, said):
    cfg = load_config(FINE_TUNING, flat(options | {"DATASETS.TRAIN": f"('{dataset(case)}',)"}))
    if case.refused:
        with pytest.raises(UserError) as error:
            read_training_data(cfg)
        assert case.said in str(error.value) or case.name in EXPECTED_IN_TRAINING
        return
    data = read_training_data(cfg)
    require_words(case, said())
    assert sum(len(record["annotations"]) for record in map(data.records.__getitem__, range(2))) == case.objects
    batch = next(training_batches(cfg, data, seed=0))
    unreadable = [line for image in batch for line in image["unreadable"]]
    assert all(case.failed in line for line in unreadable)
    assert bool(unreadable) == bool(case.failed)
    with EventStorage(), torch.no_grad():
        assert all(math.isfinite(loss) for loss in trained(batch).values())


@EVERY
def test_user_boxes_are_read_or_refused_by_name(case, images, tmp_path):
    case.write(tmp_path / "case.json", images)
    files = {path.relative_to(images).as_posix(): path for path in images.rglob("*.*")}

    def given():
        return boxes_by_image(read_boxes(tmp_path / "case.json"), files)

    if isinstance(case.boxes, str):
        with pytest.raises(UserError) as error:
            given()
        assert case.boxes in str(error.value)
        assert "case.json" in str(error.value)
        return
    by_image = given()
    assert sum(map(len, by_image.values())) == case.boxes
    for name, boxes in by_image.items():
        size = (WIDTH, HEIGHT) if name == "turned.jpg" else (HEIGHT, WIDTH)
        if boxes and case.failed and name != "b.png":
            with pytest.raises(UserError, match=case.failed):
                check_boxes(boxes, size)
        elif case.boxes == 3:
            assert len(check_boxes(boxes, size)) == len(boxes)


NAMES_OF_BOXES = {
    "a.png": "a.png",
    "./a.png": "a.png",
    "sub/a": "sub/a.png",
    "other/sub/a.png": "sub/a.png",
    "@ROOT@/a.png": "a.png",
    "@ROOT@/sub/a.png": "sub/a.png",
    "@ROOT@/sub/../b.png": "b.png",
    "/gone/b.png": "b.png",
    "C:\\data\\sub\\a.png": "sub/a.png",
    "@LINK@/b.png": "b.png",
}


@pytest.mark.parametrize("key", NAMES_OF_BOXES)
def test_boxes_find_their_image_under_any_path(key, images, tmp_path):
    files = {name: images / name for name in ("a.png", "b.png", "sub/a.png")}
    (tmp_path / "link").symlink_to(images)
    path = key.replace("@ROOT@", str(images)).replace("@LINK@", str(tmp_path / "link"))
    found = boxes_by_image({path: ImageBoxes([[1, 2, 3, 4]])}, files)
    assert [name for name, boxes in found.items() if boxes] == [NAMES_OF_BOXES[key]]


def test_boxes_of_another_image_of_this_machine_find_none(images, tmp_path):
    (tmp_path / "b.png").touch()
    with pytest.raises(UserError, match="expected one image of this name, got none"):
        boxes_by_image({str(tmp_path / "b.png"): ImageBoxes([[1, 2, 3, 4]])}, {"b.png": images / "b.png"})


def test_boxes_of_one_image_under_two_names_are_joined_with_their_sizes(images):
    given = {"a.png": ImageBoxes([[1, 2, 3, 4]], [(64, 96)]), "./a.png": ImageBoxes([[5, 6, 7, 8]], [(96, 64)])}
    joined = boxes_by_image(given, {"a.png": images / "a.png"})["a.png"]
    assert joined == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(UserError, match="96 x 64 pixels, its annotations say 64 x 96"):
        check_boxes(joined, (64, 96))


ON_THE_COMMAND_LINE = {
    "clean": (0, "Done: 2 images, 0 failed"),
    "annotation null": (0, "case.json: 1 annotations that are none, left out"),
    "size before EXIF": (1, "turned.jpg: 64 x 96 pixels, its annotations say 96 x 64"),
    "category listed twice": (2, "case.json: categories: expected an id for each, got 1 for lamp and for lamp"),
    "annotations null": (2, "error: MODEL.CLIP.CROP_REGION_TYPE GT: expected annotated boxes, got none in"),
}


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_the_command_line_says_it_once(name, run, dataset, options, tested, said, tmp_path):
    torch.save({"model": tested.state_dict()}, tmp_path / "tiny.pth")
    (case,) = [case for case in CASES if case.name == name]
    merged = options | {"DATASETS.TEST": f"('{dataset(case)}',)", "MODEL.WEIGHTS": str(tmp_path / "tiny.pth")}
    merged |= {"MODEL.CLIP.CROP_REGION_TYPE": "GT", "OUTPUT_DIR": str(tmp_path / "out")}
    code, output = run("train_net.py", "--eval-only", "--config-file", REPOSITORY / ZERO_SHOT, *flat(merged))
    expected, line = ON_THE_COMMAND_LINE[name]
    assert code == expected, output
    assert len([said for said in output.splitlines() if line in said]) == 1
    assert "Traceback" not in output
    assert (tmp_path / "out").exists() == (code != 2)
