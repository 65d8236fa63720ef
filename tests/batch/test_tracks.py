"""`detect --track`: one number for an object in all frames of a video."""

import copy
import csv
import json
import re
import sys
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from regionclip import RegionCLIP
from regionclip.batch.results import as_detections
from regionclip.data.image_sources import Frame
from regionclip.drawing import label_of
from tests.helpers.videos import PHOTOS, write_video

pytest.importorskip("trackers")

from regionclip.batch.tracks import Tracks

CAT, DOG = 0, 1


def found(class_id, x, y=10.0, score=0.4):
    return {"word": ["cat", "dog"][class_id], "class_id": class_id, "score": score, "box": [x, y, x + 40.0, y + 30.0]}


def tracked(*frames, tracks=None):
    """Return the track ids of the detections in frames, each with its timestamp."""
    tracks = tracks or Tracks()
    for seconds, detections in frames:
        tracks.update(detections, seconds)
    return [[entry.get("track_id") for entry in detections] for _, detections in frames]


def test_an_object_keeps_its_number_from_the_second_frame_on():
    frames = [(i / 10, [found(CAT, 100 - 4 * i, score=0.06), found(CAT, 10 + 4 * i, 200.0)]) for i in range(20)]
    frames[7][1].reverse()
    ids = tracked(*frames)
    assert ids[0] == [None, None]
    assert ids[7] == [2, 1] and all(row == [1, 2] for i, row in enumerate(ids) if i not in (0, 7))


def test_a_cat_does_not_become_a_dog():
    """Nor when both are at one place, as with `--per-class`."""
    frames = [(i / 10, [found(CAT if i < 5 else DOG, 50)]) for i in range(9)]
    assert tracked(*frames) == [[None], [1], [1], [1], [1], [None], [2], [2], [2]]
    both = [(i / 10, [found(DOG, 50), found(CAT, 50)]) for i in range(4)]
    assert tracked(*both) == [[None, None]] + [[1, 2]] * 3


@pytest.mark.parametrize(
    ("step", "missing", "kept"), [(0.04, 15, True), (0.04, 40, False), (4.0, 1, True), (4.0, 5, False)]
)
def test_an_object_is_lost_after_a_second_or_three_frames(step, missing, kept):
    """Time counts, not frames: with `--every`, a variable frame rate and a slow detector too."""
    frames = [(step * i, [found(CAT, 50)] if i < 4 or i >= 4 + missing else []) for i in range(8 + missing)]
    ids = [row[0] for row in tracked(*frames) if row]
    assert ids[:4] == [None, 1, 1, 1]
    assert set(ids[5:]) == ({1} if kept else {2})


def test_motion_goes_by_the_timestamps():
    """An object at 200 pixels per second is found where it is after a gap that the frames before did not have."""
    times = [i / 20 for i in range(12)] + [0.95, 1.0, 1.05]
    frames = [(time, [found(CAT, 200 * time), found(CAT, 250 - 200 * time)]) for time in times]
    # Where the two have passed each other they would be confused without their motion.
    assert tracked(*frames)[-1] == tracked(*frames)[3] == [1, 2]


def test_results_that_were_tracked_before_are_tracked_the_same():
    """As when an interrupted run goes on: its results come first."""
    dice = np.random.default_rng(3)
    frames = [
        (
            i / 10,
            [found(int(k % 2), 30.0 * k + 2 * i, float(dice.uniform(0, 5))) for k in range(8) if dice.uniform() < 0.8],
        )
        for i in range(30)
    ]
    first = tracked(*frames)
    again = copy.deepcopy(frames)
    for _, detections in again[20:]:
        for entry in detections:
            entry.pop("track_id", None)
    assert tracked(*again) == first
    assert len({number for row in first for number in row if number}) >= 8


def test_what_is_gone_is_forgotten():
    tracks = Tracks()
    for i in range(50):
        tracks.update([found(i % 2, 50)] * (i < 5) + [{**found(CAT, 300), "class_id": 2 + i}], i / 10)
    assert len(tracks._trackers) <= 12


def test_a_label_has_the_number():
    result = {"width": 200, "height": 100, "detections": [found(CAT, 5), {**found(DOG, 60), "track_id": 7}]}
    detections = as_detections(result, ("cat", "dog"), Frame(np.zeros((100, 200, 3), np.uint8)))
    assert [label_of(detections, row) for row in range(2)] == ["cat 0.40", "dog #7 0.40"]
    assert detections[1:].track_ids.tolist() == [7]
    assert detections.to_supervision().tracker_id.tolist() == [-1, 7]
    assert (
        detections.draw().tobytes()
        != as_detections(
            {**result, "detections": [found(CAT, 5), found(DOG, 60)]},
            ("cat", "dog"),
            Frame(np.zeros((100, 200, 3), np.uint8)),
        )
        .draw()
        .tobytes()
    )


OPTIONS = ("--words", "cat, dog", "--threshold", 0, "--topk", 4, "--track", "--json", "--output")


def last_json(output):
    return json.loads(output.splitlines()[-1])


def test_ids_are_in_all_formats_and_begin_again_in_each_video(command, detector_folder, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames=4)
    given = ("a.mp4", "b.mp4", PHOTOS[0], "--model", detector_folder, "--format", "csv,voc")
    code, output, error = command("detect", *given, *OPTIONS, "out")
    assert code == 0, error
    images = last_json(output)["images"]
    ids = [[entry.get("track_id") for entry in image["detections"]] for image in images]
    assert ids[:4] == ids[4:8] and set(ids[0]) == {None} and set(ids[8]) == {None}
    numbers = [number for row in ids for number in row]
    assert {1, 2} <= set(numbers)
    coco = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [annotation.get("track_id") for annotation in coco["annotations"]] == numbers
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        assert [int(row["track_id"]) if row["track_id"] else None for row in csv.DictReader(file)] == numbers
    (file,) = (tmp_path / "out" / "voc").rglob("a.1.xml")
    tracked = ElementTree.parse(file).findall("object")
    assert [entry.findtext("track_id") for entry in tracked] == [None if n is None else str(n) for n in ids[1]]
    page = (tmp_path / "out" / "report.html").read_text()
    shown = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert [[row[3] for row in image["found"]] for image in shown["images"]] == ids


def test_an_interrupted_run_goes_on_with_its_tracks(command, detector_folder, tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", frames=7)
    given = ("detect", "v.mp4", "--model", detector_folder, *OPTIONS)
    _, output, _ = command(*given, "whole")
    whole = last_json(output)["images"]
    calls, predict = [], RegionCLIP.predict

    def interrupted(self, *arguments, **more):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return predict(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(RegionCLIP, "predict", interrupted)
        assert command(*given, "out")[0] == 130
    code, output, error = command(*given, "out")
    assert code == 0, error
    assert "4 of them by an interrupted run" in output
    ids = [
        [[e.get("track_id") for e in image["detections"]] for image in images]
        for images in (whole, last_json(output)["images"])
    ]
    assert ids[0] == ids[1] and any(filter(None, ids[0][-1]))
    frames = int(cv2.VideoCapture(str(tmp_path / "out" / "videos" / "v.mp4.mp4")).get(cv2.CAP_PROP_FRAME_COUNT))
    assert frames == 7


@pytest.mark.parametrize(
    ("arguments", "hidden", "message"),
    [
        ((PHOTOS[0], "--track"), (), "--track: expected a video or a live source, got images only"),
        (("v.mp4", "--track"), ("trackers",), 'Fix: pip install "regionclip[track]"'),
    ],
)
def test_what_cannot_be_tracked_is_one_error(
    arguments, hidden, message, command, detector_folder, tmp_path, monkeypatch
):
    write_video(tmp_path / "v.mp4", frames=2)
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, error = command("detect", *arguments, "--words", "cat", "--model", detector_folder)
    assert code == 2 and message in error
    assert not (tmp_path / "output").exists()
