"""`detect 0`: a camera, until it ends, is stopped, or its time is over."""

import json
import os
import re
import signal
from functools import partial

import cv2
import numpy as np
import pytest

from regionclip.data.image_sources import find_images, read_frames
from regionclip.data.live import LiveReader
from tests.helpers.cameras import FakeCamera, plug_in
from tests.helpers.videos import PHOTOS


@pytest.fixture
def given(detector_folder):
    return ("--words", "cat, dog", "--model", detector_folder, "--threshold", 0, "--topk", 3)


def images_of(folder):
    return json.loads((folder / "detections.json").read_text())["images"]


def at_third_frame(monkeypatch, action):
    """Do something when the third frame is taken."""
    frames = LiveReader.frames

    def watched(reader):
        for number, frame in enumerate(frames(reader), start=1):
            if number == 3:
                action()
            yield frame

    monkeypatch.setattr(LiveReader, "frames", watched)


def test_ctrl_c_ends_with_what_a_video_gives(command, given, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    at_third_frame(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    camera = plug_in(monkeypatch, FakeCamera(interval=0.01))
    code, output, error = command("detect", 0, *given, "--format", "csv", "--json")
    assert code == 0, error
    assert camera.is_released and signal.getsignal(signal.SIGINT) is before
    (out,) = (tmp_path / "output" / "detect").iterdir()  # a folder of its own
    assert re.fullmatch(r"camera_0_\d{8}_\d{6}", out.name)
    names = ["detections.csv", "detections.json", "report.html", "thumbnails", "videos"]
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == names
    images = images_of(out)
    assert len(images) == 3 and "Done: 3 images" in output
    seconds = [image["seconds"] for image in images]
    assert seconds[0] == 0 and np.diff(seconds).min() > 0
    assert {image["file_name"] for image in images} == {"camera 0"}
    assert np.diff([image["frame"] for image in images]).min() >= 1
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]", image["date_captured"]) for image in images)
    dropped = json.loads(output.splitlines()[-1])["left_out"]["frames that came while an earlier one was processed"]
    assert 0 < dropped <= camera.given
    assert f"left out: {dropped} frames that came while" in output
    assert "frames dropped; Ctrl-C ends" in error
    (drawn,) = find_images([str(out / "videos" / "camera_0.mp4")])
    assert list(read_frames(drawn))[-1].seconds == pytest.approx(seconds[-1], abs=0.05)
    page = (out / "report.html").read_text()
    shown = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])["images"]
    assert 1 <= len(shown) <= 1 + seconds[-1]  # one a second
    assert all((out / image["thumbnail"]).is_file() for image in shown)


def test_seconds_end_a_run(command, given, tmp_path, monkeypatch):
    plug_in(monkeypatch, FakeCamera(interval=0.01))
    code, _, error = command("detect", 0, *given, "--seconds", 0.3, "--output", "out")
    assert code == 0, error
    assert 0 <= images_of(tmp_path / "out")[-1]["seconds"] <= 0.3


def test_a_camera_that_is_unplugged_is_reported(command, given, tmp_path, monkeypatch):
    monkeypatch.setattr("regionclip.data.live.LiveReader", partial(LiveReader, retry_seconds=(0.01, 0.01)))
    camera = plug_in(monkeypatch, FakeCamera(interval=0.005))
    at_third_frame(monkeypatch, lambda: setattr(camera, "frames", 0))
    code, output, error = command("detect", 0, *given, "--output", "out")
    assert code == 1
    assert "error: camera 0: no more frames, also after 2 tries to open it again" in error
    assert len(images_of(tmp_path / "out")) >= 3 and ", 1 failed" in output
    assert cv2.VideoCapture(str(tmp_path / "out" / "videos" / "camera_0.mp4")).isOpened()


def test_results_of_a_live_source_are_never_replaced(command, given, tmp_path, monkeypatch):
    plug_in(monkeypatch, FakeCamera(interval=0.01))
    (tmp_path / "out").mkdir()
    for name in ("detections.json", "detections.0.jsonl"):
        (tmp_path / "out" / name).write_text("{}")
        code, _, error = command("detect", 0, *given, "--seconds", 0.1, "--output", "out")
        assert code == 2
        assert (
            f"output out: expected a folder without results, since a live source cannot be continued, got {name}"
            in error
        )
        assert (tmp_path / "out" / name).read_text() == "{}"
        (tmp_path / "out" / name).unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "--shard", "0/2"), "--shard: expected images or video files, got the live source camera 0. Fix: leave"),
        ((0, "--boxes", "b.json"), "--boxes: expected images or video files, got the live source camera 0"),
        ((0, "--batch", 2), "--batch: expected images or video files, got the live source camera 0"),
        ((0, PHOTOS[0]), "inputs: expected files, or one live source alone, got 0 among 2 inputs"),
        ((0,), "camera 0: expected a camera or stream that gives frames, got none. Fix: check that it is connected"),
        (("rtsp://me:hunter@127.0.0.1:9/a",), "error: rtsp://***@127.0.0.1:9/a: expected a camera or stream"),
        ((PHOTOS[0], "--seconds", 3), "--seconds: expected a live source, got files"),
    ],
)
def test_what_a_live_source_cannot_have_is_one_error(arguments, message, command, given, tmp_path, monkeypatch):
    plug_in(monkeypatch, FakeCamera(0))
    code, output, error = command("detect", *arguments, *given)
    assert code == 2
    assert message in error and error.count("error: ") == 1
    assert "hunter" not in output + error
    assert not list(tmp_path.iterdir())
