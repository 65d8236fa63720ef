"""Videos: when their frames come, at what pace they are drawn, and whose boxes are whose."""

import errno
import itertools
import json
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.batch import video as video_module
from regionclip.batch.detect import DetectOptions, detect
from regionclip.batch.video import VideoWriter
from regionclip.data.frame_times import FrameClock, drawn_rate, frame_times
from regionclip.data.image_sources import find_images, read_frames
from regionclip.data.user_boxes import read_boxes
from regionclip.errors import UserError
from tests.helpers.paths import DATA

SIZE = (128, 96)


def write(path, frames=4, rate=10):
    photo = Image.open(sorted((DATA / "four_photos" / "pictures").iterdir())[0]).convert("RGB").resize(SIZE)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, SIZE)
    for number in range(frames):
        video.write(np.roll(np.array(photo), 9 * number, axis=1)[:, :, ::-1].copy())
    video.release()
    return path


def atoms(data, start, end):
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        yield start, size or end - start, kind
        start += size or end - start


def find(data, *path):
    start, end = 0, len(data)
    for kind in path:
        place, size = next((p, s) for p, s, k in atoms(data, start, end) if k == kind)
        start, end = place + 8, place + size
    return place, size


@pytest.fixture
def uneven(tmp_path):
    """A film of four frames as phones write them: the third comes five seconds after the second."""
    data = bytearray(write(tmp_path / "steady.mp4").read_bytes())
    path = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
    place, size = find(data, *path)
    step = struct.unpack(">I", data[place + 20 : place + 24])[0]
    table = struct.pack(">I4sIIIIIIII", 40, b"stts", 0, 3, 1, step, 1, step * 50, 2, step)
    for depth in range(1, 6):
        outer, length = find(data, *path[:depth])
        data[outer : outer + 4] = struct.pack(">I", length + len(table) - size)
    data[place : place + size] = table
    track = (b"moov", b"trak")
    durations = {
        (b"moov", b"mvhd"): 24,
        (*track, b"tkhd"): 28,
        (*track, b"mdia", b"mdhd"): 24,
        (*track, b"edts", b"elst"): 16,
    }
    for where, offset in durations.items():
        place, _ = find(data, *where)
        (duration,) = struct.unpack(">I", data[place + offset : place + offset + 4])
        data[place + offset : place + offset + 4] = struct.pack(">I", duration * 53 // 4)
    (tmp_path / "uneven.mp4").write_bytes(data)
    return tmp_path / "uneven.mp4"


@pytest.fixture(scope="module")
def detector(detector_folder):
    made = RegionCLIP.from_pretrained(detector_folder, overrides=["INPUT.MIN_SIZE_TEST", "96"])
    made.set_vocabulary(["cat", "dog"])
    return made


def run(detector, path, output, boxes=None, **options):
    options = DetectOptions(threshold=0.0, topk=3, report=False, **options)
    return detect(detector, find_images([str(path)]), output, options, boxes)


def test_frames_come_when_the_container_says(detector, uneven, tmp_path):
    (file,) = find_images([str(uneven)])
    assert [frame.seconds for frame in read_frames(file)] == pytest.approx([0, 0.1, 5.1, 5.2])
    assert [frame.seconds for frame in read_frames(file, every=2)] == pytest.approx([0, 5.1])
    assert frame_times(uneven) == pytest.approx([0, 0.1, 5.1, 5.2])
    run(detector, uneven, tmp_path / "out")
    images = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [(image["frame"], image["seconds"]) for image in images] == [(0, 0.0), (1, 0.1), (2, 5.1), (3, 5.2)]


def shown(path):
    """Return the times and the pixels of a drawn video."""
    (file,) = find_images([str(path)])
    return [(round(frame.seconds, 3), frame.pixels.astype(int)) for frame in read_frames(file)]


def test_a_drawn_video_plays_as_its_source(detector, uneven, tmp_path):
    run(detector, uneven, tmp_path / "out")
    frames = shown(tmp_path / "out" / "videos" / "uneven.mp4.mp4")
    assert [seconds for seconds, _ in frames] == pytest.approx([0.1 * i for i in range(53)], abs=2e-3)
    # The second frame is seen until the third comes.
    differences = [np.abs(after[1] - before[1]).mean() for before, after in itertools.pairwise(frames)]
    changes = [number for number, difference in enumerate(differences, start=1) if difference > 5]
    assert changes == [1, 51, 52]


@pytest.mark.parametrize(("rate", "every", "expected"), [(10, 1, 10), (10, 3, 10 / 3), (24000 / 1001, 1, 24000 / 1001)])
def test_a_steady_video_has_its_rate_and_each_frame_once(rate, every, expected, detector, tmp_path):
    path = write(tmp_path / "v.mp4", frames=7, rate=rate)
    assert drawn_rate(path, every) == pytest.approx(expected, rel=1e-4)
    report = run(detector, path, tmp_path / "out", every=every)
    assert len(shown(tmp_path / "out" / "videos" / "v.mp4.mp4")) == len(report.results) == -(-7 // every)


def test_times_that_cannot_be_are_replaced(tmp_path):
    clock = FrameClock(write(tmp_path / "v.mp4"))
    seconds = [clock.tick(milliseconds) for milliseconds in (0, 0, 0, 500, float("nan"), 400, float("inf"))]
    assert seconds == pytest.approx([0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8])


def test_detections_of_a_video_go_back_to_their_frames(detector, tmp_path):
    path = write(tmp_path / "v.mp4", frames=7)
    first = run(detector, path, tmp_path / "first", every=3)
    given = read_boxes(tmp_path / "first" / "detections.json")
    assert len(given) == 3
    again = run(detector, path, tmp_path / "again", given, every=3)
    for one, other in zip(first.results, again.results, strict=True):
        boxes = [[found["box"] for found in result["detections"]] for result in (one, other)]
        assert len(boxes[0]) > 0
        np.testing.assert_allclose(*boxes, atol=1e-2)
    assert again.unnamed == 0
    # Frame 3 is not looked at; frames 2 and 4 have no boxes.
    other = run(detector, path, tmp_path / "other", given, every=2)
    counts = {result["frame"]: len(result["detections"]) for result in other.results}
    frames = {result["frame"]: len(result["detections"]) for result in first.results}
    assert counts == {0: frames[0], 2: 0, 4: 0, 6: frames[6]}
    assert other.unnamed == frames[3] > 0


def test_boxes_of_a_frame_by_name_and_of_all_frames(detector, tmp_path):
    path = write(tmp_path / "v.mp4", frames=3)
    (tmp_path / "b.json").write_text(json.dumps({"v.mp4#1": [[5, 5, 40, 40]], "v.mp4": [[0, 0, 20, 20]]}))
    report = run(detector, path, tmp_path / "out", read_boxes(tmp_path / "b.json"))
    found = [[entry["box"] for entry in result["detections"]] for result in report.results]
    assert [len(boxes) for boxes in found] == [1, 2, 1]
    np.testing.assert_allclose(found[1], [[0, 0, 20, 20], [5, 5, 40, 40]], atol=1e-3)


def test_frames_that_no_video_can_have_are_named(tmp_path):
    source = write(tmp_path / "v.mp4")
    message = r"none with frames of 2 x 40000 pixels\. Fix: leave it out with --no-drawings"
    with pytest.raises(UserError, match=message), VideoWriter(source, tmp_path / "d.mp4", 1) as video:
        video.write(np.zeros((40000, 2, 3), np.uint8), 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_a_video_that_was_not_written_whole_is_none(tmp_path, monkeypatch):
    source, pixels = write(tmp_path / "v.mp4"), np.zeros((48, 64, 3), np.uint8)

    def torn():
        with VideoWriter(source, tmp_path / "d.mp4", 1) as video:
            video.write(pixels, 0.0)
            video._video.release()
            video._temporary.write_bytes(video._temporary.read_bytes()[:100])

    with pytest.raises(UserError, match="expected a video that can be written, got one of 0 frames instead of 1"):
        torn()
    monkeypatch.setattr(video_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left") as caught:
        torn()
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
