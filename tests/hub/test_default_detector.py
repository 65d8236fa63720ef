"""The detector that comes with the repository, and what is shown with it."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from regionclip import RegionCLIP, doctor
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.errors import UserError
from regionclip.hub import pretrained
from tests.helpers.paths import REPOSITORY

FOLDER = REPOSITORY / "pretrained_ckpt" / "emoji"
SCENES = REPOSITORY / "datasets" / "demo_scenes"


@pytest.fixture(scope="module")
def detector():
    return RegionCLIP.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def truth():
    content = json.loads((SCENES / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    scenes = {image["id"]: (image["file_name"], []) for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = [x, y, x + width, y + height]
        scenes[annotation["image_id"]][1].append((names[annotation["category_id"]], box))
    return dict(scenes.values())


def test_it_is_small_and_names_its_origin():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 20e6
    card = (FOLDER / "README.md").read_text()
    for word in ("Noto", "Twemoji", "Apache", "CC BY 4.0", "photos", "AP50"):
        assert word in card


def test_it_knows_its_words_from_the_start(detector):
    assert list(detector.vocabulary.names) == [concept.name for concept in read_concepts()]


def test_given_boxes_get_their_names(detector, truth):
    right = total = 0
    for file_name, named_boxes in truth.items():
        detector.set_image(SCENES / file_name)
        named = detector.predict(boxes=[box for _, box in named_boxes])
        right += sum(name == found for (name, _), found in zip(named_boxes, named.names, strict=True))
        total += len(named_boxes)
    # Of 1174 words, one in a thousand would be right by chance.
    assert right >= total / 2


def test_typed_words_are_found_and_no_others(truth):
    detector = RegionCLIP.from_pretrained("emoji", device="cpu")
    file_name, named_boxes = next(iter(truth.items()))
    detector.set_image(SCENES / file_name)
    detector.set_vocabulary([*dict(named_boxes), "guitar"])
    found = detector.predict()
    assert set(found.names) and set(found.names) <= set(dict(named_boxes))
    for name, box in zip(found.names, found.boxes, strict=True):
        places = torch.tensor([place for other, place in named_boxes if other == name])
        corner = torch.minimum(places[:, 2:], torch.tensor(box[2:])) - torch.maximum(
            places[:, :2], torch.tensor(box[:2])
        )
        assert (corner.clamp(min=0).prod(dim=1) > 0).any()


def test_the_demonstration_finds_names(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "tools/demo.py"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    right, detections, objects = map(
        int, re.search(r"(\d+) of (\d+) detections are right; (\d+) objects", done.stdout).groups()
    )
    assert right >= detections / 2 and right >= objects / 2
    assert re.search(r"novel +right", done.stdout)


@pytest.fixture
def no_detector_of_photos(monkeypatch):
    """Let no detector of photos be on this machine, whatever its user has downloaded."""
    monkeypatch.delenv("REGIONCLIP_MODEL", raising=False)
    monkeypatch.setattr("regionclip.hub.default.PHOTO_MODELS", ())


def test_detect_takes_it_when_nothing_is_named(command, no_detector_of_photos, tmp_path):
    scene = sorted(SCENES.glob("*.jpg"))[0]
    code, _, error = command("detect", scene, "--output", tmp_path / "out", "--json")
    assert code == 0, error[-2000:]
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(content["categories"]) == 1174
    # The detector's own threshold, not the general one: few boxes.
    assert 1 <= len(content["annotations"]) <= 10
    scores = [annotation["score"] for annotation in content["annotations"]]
    assert min(scores) > 0.2 and max(scores) < 1


def test_an_installation_without_weights_says_where_they_are(no_detector_of_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SHIPPED", {"emoji": "gone"})
    with pytest.raises(
        UserError, match=r"detector emoji: expected its files in .*gone, got no .*install the package again"
    ):
        RegionCLIP.from_pretrained("emoji")
    assert doctor.check_default_detector().state == "emoji in pretrained_ckpt/emoji"
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    finding = doctor.check_default_detector()
    assert f"emoji is not in {tmp_path / 'pretrained_ckpt' / 'emoji'}" in finding.state
    assert "install the package again" in finding.fix
    monkeypatch.setenv("REGIONCLIP_MODEL", "my_detector")
    assert doctor.check_default_detector().state == "my_detector, named by REGIONCLIP_MODEL"
