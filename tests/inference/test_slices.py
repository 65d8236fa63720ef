"""Detection in tiles: their layout, what their edges cut, merging, and small objects that only tiles show."""

import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from regionclip import RegionCLIP, Slices
from regionclip.errors import UserError
from regionclip.inference.slices import detect_in_slices, merge
from regionclip.modeling.detector import Selection
from tests.helpers.paths import DATA, REPOSITORY

PHOTO = sorted((DATA / "four_photos" / "images").iterdir())[0]


@pytest.mark.parametrize("size", [(640, 640), (100, 2000), (641, 1281), (1999, 1333), (50, 60)])
@pytest.mark.parametrize("slices", [Slices(640, 0.2), Slices(256, 0.0), Slices(320, 0.5)])
def test_tiles_cover_the_image_and_overlap(size, slices):
    covered = np.zeros(size, dtype=int)
    tiles = slices.tiles(size)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]
        assert x2 - x1 == min(slices.side, size[1]) and y2 - y1 == min(slices.side, size[0])
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    columns = sorted({(x1, x2) for x1, _, x2, _ in tiles})
    for (_, end), (start, _) in itertools.pairwise(columns):
        assert end - start >= int(slices.overlap * slices.side) - 1


@pytest.mark.parametrize("text", ["640:0.9", "8", "a:b", "640:0.2:1", "640:-0.1"])
def test_invalid_slices_are_one_error(text):
    with pytest.raises(UserError, match="slices"):
        Slices.parse(text)


def test_options_are_parsed():
    with pytest.raises(UserError, match=r"^slices: expected a side from 32 pixels, .* got 16:0\.2"):
        Slices.parse("16")
    assert Slices.parse("") is None
    assert Slices.parse("640") == Slices(640, 0.2) and Slices.parse("320:0.5") == Slices(320, 0.5)


@pytest.fixture
def detector(detector_folder):
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    detector.set_vocabulary(["cat", "dog"], background=None)
    return detector


def found_in(image, boxes):
    """Return detections of an image at boxes in its own pixels."""
    count = len(boxes)
    scaled = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * image.scale
    labels = {"scores": torch.linspace(0.9, 0.5, count), "pred_classes": torch.zeros(count, dtype=torch.int64)}
    return Instances(image.network_size, pred_boxes=Boxes(scaled), **labels, embeddings=torch.zeros(count, 4))


def test_boxes_of_tiles_are_moved_and_cut_ones_left_out(detector):
    image = detector.prepare_image(np.zeros((100, 300, 3), dtype=np.uint8))
    seen = []

    def detect(part):
        seen.append(part.size)
        if part is image:
            return found_in(part, [])
        return found_in(part, [[10, 20, 30, 40], [0, 20, 30, 60], [80, 20, part.size[1], 60]])

    found = detect_in_slices(image, Slices(200, 0.5), detect)
    assert seen == [(100, 300), (100, 200), (100, 200)]
    boxes = (found.pred_boxes.tensor / image.scale).round().tolist()
    # The first tile has the left border of the image, the second its right border; inner edges cut boxes.
    assert boxes == [[10, 20, 30, 40], [0, 20, 30, 60], [110, 20, 130, 40], [180, 20, 300, 60]]


def test_an_object_in_several_tiles_is_one_detection(detector):
    image = detector.prepare_image(np.zeros((100, 300, 3), dtype=np.uint8))
    found = found_in(image, [[120, 20, 180, 60], [121, 20, 180, 61], [10, 10, 30, 30]])
    merged = merge(found, detector.cfg, Selection(None, None, per_class=True))
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(merge(found, detector.cfg, Selection(None, 1))) == 1


def test_one_tile_is_the_image_itself(detector):
    detector.set_image(PHOTO)
    plain, sliced = detector.predict(threshold=0.0), detector.predict(threshold=0.0, slices=Slices(640))
    np.testing.assert_allclose(sliced.boxes, plain.boxes, atol=1e-3)
    assert sliced.names == plain.names


@pytest.fixture(scope="module")
def mosaic():
    """Return a scene, and an image that has it sixteen times."""
    scene = Image.open(sorted((REPOSITORY / "datasets" / "demo_scenes").glob("*.jpg"))[0]).convert("RGB")
    whole = Image.new("RGB", (4 * scene.width, 4 * scene.height))
    for row in range(4):
        for column in range(4):
            whole.paste(scene, (column * scene.width, row * scene.height))
    return scene, whole


def test_tiles_show_small_objects(mosaic):
    """Resized to one scene's size, an image of sixteen scenes loses objects that are detected in one."""
    scene, whole = mosaic
    detector = RegionCLIP.from_pretrained("emoji", device="cpu")
    detector.set_image(scene)
    alone = detector.predict(threshold=0.3)
    detector.set_image(whole)
    plain = detector.predict(threshold=0.3, topk=100)
    sliced = detector.predict(threshold=0.3, topk=100, slices=Slices(max(scene.size), 0.2))
    wanted = 16 * len(alone)
    assert len(alone) >= 2 and len(plain) < 0.5 * wanted
    assert len(sliced) > 0.7 * wanted


def test_the_command_detects_in_tiles(command, detector_folder, tmp_path):
    given = [PHOTO, "--model", detector_folder, "--device", "cpu", "--words", "cat", "--threshold", 0]
    for name, extra in (("plain", []), ("tiles", ["--slices", "64:0.25"])):
        code, _, error = command("detect", *given, *extra, "--topk", 200, "--output", name)
        assert code == 0, error
    plain, tiles = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("plain", "tiles"))
    assert len(tiles["annotations"]) != len(plain["annotations"])
    with Image.open(PHOTO) as photo:
        for entry in tiles["annotations"]:
            x, y, width, height = entry["bbox"]
            assert x >= -1e-3 and y >= -1e-3 and x + width <= photo.width + 1e-2 and y + height <= photo.height + 1e-2
    code, _, error = command("detect", *given, "--slices", "nine", "--output", "none")
    assert code == 2 and "slices nine: expected SIDE:OVERLAP" in error and not (tmp_path / "none").exists()


def test_cut_boxes_take_no_places_of_others(detector):
    """The best of all tiles are returned, whatever each of them alone would return."""
    detector.set_image(PHOTO)
    every = detector.predict(threshold=0.0, topk=10**6, slices=Slices(64, 0.25))
    best = detector.predict(threshold=0.0, topk=3, slices=Slices(64, 0.25))
    np.testing.assert_allclose(best.scores, every.scores[:3])
    assert len(every) > 10


def test_slices_are_not_for_user_boxes(detector):
    detector.set_image(PHOTO)
    with pytest.raises(UserError, match="slices: expected none with user boxes"):
        detector.predict([[1, 2, 30, 40]], slices=Slices(64))
    with pytest.raises(UserError, match="slices: expected a side"):
        Slices(64.5)
