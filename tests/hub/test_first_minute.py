"""`regionclip detect photo.jpg` on a new machine: which detector serves, and what the user is told."""

import json
import shutil
import sys
import types

import pytest

from regionclip.hub import zoo
from regionclip.hub.default import default_model
from regionclip.published import PublishedFile, PublishedModel
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat
from tests.helpers.paths import REPOSITORY
from tests.helpers.published import contents, serve

GIVEN = ("detect", "photo.jpg", "--words", "cat", "--set", "INPUT.MIN_SIZE_TEST=96")
SMALL = "small_detector"
"""Offered in these tests, for its size."""

MODEL = PublishedModel(
    SMALL,
    LVIS_CUSTOM,
    "clip/small.safetensors",
    tuple(flat(TINY | {"MODEL.DEVICE": "cpu"})),
    rpn_weights="rpn/small.pth",
    clip=TINY["MODEL.CLIP.ARCHITECTURE"],
    class_list="coco17",
    rank=1,
    summary="A small detector of photos.",
)
FILES = (
    PublishedFile(
        "clip/small.safetensors",
        ("https://nowhere.example",),
        key="visual.attnpool.c_proj.weight",
        shape=(32, 512),
        megabytes=253,
        license="MIT",
        text_encoder="tiny_clip",
    ),
    PublishedFile(
        "rpn/small.pth",
        ("https://nowhere.example",),
        key="objectness_logits.weight",
        shape=(9, 256, 1, 1),
        megabytes=110,
        license="CC-BY-SA-3.0",
    ),
)


@pytest.fixture(autouse=True)
def machine(servers, checkpoints, monkeypatch):
    """A machine with the package, a photo and nothing else; its hub has the files of one detector."""
    monkeypatch.setattr("regionclip.hub.default.OFFERED", SMALL)
    monkeypatch.setattr("regionclip.hub.default.PHOTO_MODELS", (MODEL,))
    monkeypatch.setitem(zoo.MODELS, SMALL, MODEL)
    for file in FILES:
        monkeypatch.setitem(zoo.FILES, file.path, file)
    # The embedded detector comes with the package.
    shutil.copytree(REPOSITORY / "pretrained_ckpt" / "emoji", checkpoints / "emoji")
    shutil.copy(REPOSITORY / "datasets" / "demo_images" / "000000160012.jpg", "photo.jpg")
    return servers


@pytest.fixture
def hub(machine, monkeypatch):
    server = machine()
    serve(server, zoo.MODELS[SMALL], monkeypatch)
    return server


def terminal(monkeypatch, answer):
    """Let a person sit at the terminal, who gives one answer."""
    answers = [answer]
    stdin = types.SimpleNamespace(isatty=lambda: True, readline=lambda: answers.pop())
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr("regionclip.console._is_terminal", lambda: True)
    return answers


def test_nothing_on_disk_and_offline(command, monkeypatch):
    monkeypatch.setenv("REGIONCLIP_OFFLINE", "1")
    answers = terminal(monkeypatch, "y\n")
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert answers == ["y\n"]  # nothing was asked
    assert "Detector emoji: the embedded detector knows emoji drawings only; for photos: regionclip detect" in output
    assert "warning: 1 of 1 images: a photograph" in error


def test_nothing_on_disk_and_a_hub(command, hub, checkpoints, monkeypatch):
    answers = terminal(monkeypatch, "y\n")
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert answers == []
    assert "No detector of photos is on this machine" in error
    assert "about 363 MB (CC-BY-SA-3.0, MIT)" in error
    assert f"Detector {SMALL}: just downloaded" in output
    assert "a photograph" not in error
    assert (checkpoints / "rpn" / "small.pth").is_file()
    assert default_model().name == SMALL


def test_the_offer_is_declined_or_the_hub_is_away(command, hub, monkeypatch):
    terminal(monkeypatch, "n\n")
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert "Detector emoji" in output and not hub.requests
    hub.files.clear()
    terminal(monkeypatch, "y\n")
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert "HTTP 404" in error and "Detector emoji" in output


def test_photo_weights_on_disk(command, hub, checkpoints):
    for path, content in contents(zoo.MODELS[SMALL]).items():
        (checkpoints / path).parent.mkdir(parents=True, exist_ok=True)
        (checkpoints / path).write_bytes(content)
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert f"Detector {SMALL}: the best detector of photos on this machine" in output
    assert not hub.requests


def test_a_pipe_is_never_asked(command, hub):
    code, output, error = command(*GIVEN)
    assert code == 0, error
    assert "Detector emoji: the embedded detector knows emoji drawings only" in output
    assert not hub.requests
    code, output, _ = command(*GIVEN, "--yes", "--output", "agreed")
    assert code == 0
    assert f"Detector {SMALL}" in output


def test_json_says_which_detector_and_why(command):
    code, output, error = command(*GIVEN, "--json")
    assert code == 0, error
    result = json.loads(output.splitlines()[-1])
    assert result["detector"] == "emoji"
    assert "a photograph" in result["images"][0]["warnings"][0]


def test_the_own_default_wins(monkeypatch):
    monkeypatch.setenv("REGIONCLIP_MODEL", "some/folder")
    assert default_model().name == "some/folder"


def test_the_list_of_detectors(command, checkpoints):
    code, output, error = command("models", "--json")
    assert code == 0, error
    content = json.loads(output.splitlines()[-1])
    assert content["default"] == "emoji"
    rows = {row["name"]: row for row in content["models"]}
    assert rows.keys() == {"emoji", *zoo.MODELS}
    assert rows["clip_rn50"]["on this machine"] == "0 of 2 files"
    assert (rows["clip_rn50"]["MB"], rows["clip_rn50"]["license"]) == (518, "CC-BY-SA-3.0, MIT")
    assert "80 COCO classes" in rows["clip_rn50"]["summary"]


def test_every_command_asks_before_a_large_download(command, hub, tmp_path):
    for name, arguments in (
        ("pack", (SMALL, "--output", tmp_path / "out")),
        ("export", (SMALL, "--output", tmp_path / "out")),
        ("concepts", ("--words", "cat", "--model", SMALL)),
        ("download", (SMALL,)),
    ):
        code, _, error = command(name, *arguments)
        assert code == 2, name
        assert "add --yes" in error, name
    assert not hub.requests
    code, output, error = command(
        "concepts", "--words", "cat", "--model", SMALL, "--yes", "--output", "cat.safetensors"
    )
    assert code == 0, error
    assert "1 classes x 32" in output
