"""Results files of any origin on the images of a dataset: drawn, or refused with the entry that is wrong."""

import json
import logging
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from regionclip.engine.visualization import VisualizationOptions, visualize_results
from regionclip.errors import UserError

SIDE = 200
RESULT = {"image_id": 397133, "category_id": 44, "bbox": [20.0, 20.0, 120.0, 120.0], "score": 0.9}
POLYGON = [[20, 20, 140, 20, 140, 140]]
RUN_LENGTHS = {"size": [SIDE, SIDE], "counts": [20 * SIDE, 120 * SIDE, 60 * SIDE]}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw results on two images, one of them in a folder, and return the pixels of the first."""
    # Detectron2 chooses colors at random, some of which are as gray as the images.
    monkeypatch.setattr("detectron2.utils.visualizer.random_color", lambda **_: np.array([1.0, 0, 0]))
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(tmp_path / name)
    images = [
        {"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, name in ((397133, "a.png"), (7, "sub/b.png"))
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 44, "name": "bottle"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    register_coco_instances("tests_drawn", {}, str(tmp_path / "set.json"), str(tmp_path))

    def call(results, encoding="utf-8", **options):
        text = results if isinstance(results, str) else json.dumps(results)
        (tmp_path / "results.json").write_text(text, encoding=encoding)
        assert (
            visualize_results(
                str(tmp_path / "results.json"), str(tmp_path / "out"), "tests_drawn", VisualizationOptions(**options)
            )
            == []
        )
        return np.asarray(Image.open(tmp_path / "out" / "a.png").convert("RGB")).astype(int)

    yield call
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("tests_drawn", None)


def inside(pixels):
    """Return how many pixels of the box were colored, away from its edge and its label."""
    return int((np.abs(pixels[60:136, 30:136] - 90).max(axis=2) > 20).sum())


def edge(pixels):
    """Return how many pixels of the lower edge of the box were colored."""
    return int((np.abs(pixels[136:144, 40:120] - 90).max(axis=2) > 20).sum())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_id": "397133"},
        {"image_id": 397133.0, "category_id": "44"},
        {"bbox": ["20", "20", "120", "120"], "score": "0.9"},
    ],
)
def test_ids_and_numbers_may_be_text(draw, changes):
    assert edge(draw([RESULT | changes])) > 60


def test_a_mark_and_other_encodings_are_read(draw):
    for encoding in ("utf-8-sig", "utf-16"):
        assert edge(draw([RESULT], encoding=encoding)) > 60


@pytest.mark.parametrize(
    ("segmentation", "share"),
    [(POLYGON, 0.6), (RUN_LENGTHS, 1), ([], 0), (None, 0), ([[1, 2, 3, 4]], 0), ({"size": [3, 3], "counts": [9]}, 0)],
    ids=["polygon", "run lengths", "empty", "null", "four numbers", "another size"],
)
def test_masks_are_drawn_and_what_is_none_ignored(draw, segmentation, share):
    pixels = draw([RESULT | {"segmentation": segmentation}])
    assert edge(pixels) > 60
    # The triangle is the upper right half of the box: 6708 of the 8056 pixels looked at lie above its diagonal or so.
    assert (inside(pixels) > 0.3 * 8056) == (share > 0)
    assert (inside(pixels) > 0.95 * 8056) == (share == 1)


def test_masks_of_some_results_are_drawn(draw):
    with_mask, without = RESULT | {"segmentation": RUN_LENGTHS}, RESULT | {"bbox": [150.0, 150.0, 20.0, 20.0]}
    assert inside(draw([with_mask, without])) > 0.95 * 8056


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([RESULT | {"image_id": 5}], "expected images that .*results.json has results of, got none of the 1 images"),
        ([RESULT, 7], r"results.json, entry 1: expected a detection, got 7"),
        ([RESULT | {"image_id": None}], "entry 0: expected an id as image_id, got None"),
        ([RESULT | {"category_id": [1]}], r"entry 0: expected an id as category_id, got \[1\]"),
        ([RESULT | {"category_id": "x"}], "expected results with its 1 categories, got category x"),
        ([RESULT | {"bbox": [1, 2, 3]}], "entry 0: expected four numbers as bbox"),
        ([RESULT | {"bbox": None}], "entry 0: expected four numbers as bbox, got None"),
        ([RESULT | {"bbox": [1, 2, 3, math.nan]}], "entry 0: expected four numbers as bbox"),
        ([RESULT | {"score": None}], "entry 0: expected a number as score, got None"),
        ([RESULT | {"score": math.nan}], "entry 0: expected a number as score"),
        ([{key: value for key, value in RESULT.items() if key != "score"}], "a number as score, got None"),
        ({"annotations": [RESULT]}, "expected a list in COCO's results format, got a dict"),
        ("[", "expected a list in COCO's results format, got JSONDecodeError"),
        ("", "expected a list in COCO's results format, got JSONDecodeError"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, results, message, tmp_path):
    with pytest.raises(UserError, match=message):
        draw(results)
    assert not (tmp_path / "out").exists()


def test_results_of_unknown_images_are_counted(draw, caplog):
    package = logging.getLogger("regionclip")
    package.addHandler(caplog.handler)
    try:
        draw([RESULT, RESULT | {"image_id": 5}, RESULT | {"image_id": "x"}])
    finally:
        package.removeHandler(caplog.handler)
    assert "2 results of 2 unknown images, left out" in caplog.text


def test_no_results_at_all_draw_the_images(draw):
    assert edge(draw([])) == 0


def test_a_broken_summary_beside_the_results_does_not_matter(draw, tmp_path):
    for content in ("{", "[]", '{"classes": 1}'):
        (tmp_path / "metrics.json").write_text(content)
        assert edge(draw([RESULT])) > 60


def test_an_image_is_never_replaced_by_its_drawing(draw, tmp_path):
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "out").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match=r"--output .*out: expected another folder than that of the images"):
        draw([RESULT])
    assert (tmp_path / "a.png").read_bytes() == before


def test_images_of_one_name_in_two_folders_are_both_drawn(draw, tmp_path):
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "sub" / "a.png")
    content = json.loads((tmp_path / "set.json").read_text())
    content["images"].append({"id": 8, "file_name": "sub/a.png", "width": SIDE, "height": SIDE})
    (tmp_path / "set.json").write_text(json.dumps(content))
    draw([RESULT])
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == ["a.png", "b.png", "sub/a.png"]
