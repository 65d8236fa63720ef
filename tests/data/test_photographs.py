"""Photographs and drawings are told apart, and a detector of drawings says what it was given."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.cli.main import main
from regionclip.data.photographs import is_photograph
from tests.helpers.paths import REPOSITORY

SCENES = sorted((REPOSITORY / "datasets" / "demo_scenes").glob("*.jpg"))
PHOTOS = sorted((REPOSITORY / "datasets" / "demo_images").glob("*.jpg"))


@pytest.mark.parametrize("path", [*SCENES, *PHOTOS], ids=lambda path: path.stem)
def test_the_shipped_images(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert is_photograph(pixels) == (path in PHOTOS)


def test_the_grain_does_not_depend_on_the_size_of_a_photo():
    image = Image.open(PHOTOS[0]).convert("RGB")
    assert is_photograph(np.asarray(image.resize((image.width * 3, image.height * 3))))
    assert not is_photograph(np.zeros((2, 1, 3), np.uint8))
    assert not is_photograph(np.full((300, 300, 3), 200, np.uint8))


@pytest.mark.parametrize("path", [SCENES[0], PHOTOS[0]], ids=["drawing", "photograph"])
def test_a_detector_of_drawings_warns_about_photographs(path):
    detector = RegionCLIP.from_pretrained("emoji", device="cpu")
    detector.set_image(path)
    warnings = detector.predict().warnings
    assert (len(warnings) == 1 and "a photograph" in warnings[0]) if path in PHOTOS else warnings == ()


def test_the_command_says_it_everywhere(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = [str(SCENES[0]), str(PHOTOS[0])]
    arguments = ["detect", *files, "--model", "emoji", "--json", "--output", "found"]
    monkeypatch.setattr(sys, "argv", ["regionclip", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    output, error = capfd.readouterr()
    images = json.loads(output.splitlines()[-1])["images"]
    assert ["warnings" in image for image in images] == [False, True]
    assert "warning: 1 of 2 images: a photograph" in error
    assert "for photos: regionclip detect --model clip_rn50" in error
    assert "trained on drawings" in (tmp_path / "found" / "report.html").read_text()
