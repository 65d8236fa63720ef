"""Videos: when their frames come, at what pace they are drawn, and whose boxes are whose."""

import errno
import itertools
import json
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.batch import video as video_module
from regionclip.batch.detect import DetectOptions, detect
from regionclip.batch.encoders import H264Encoder, MPEG4Encoder, can_write_h264
from regionclip.batch.video import VideoWriter
from regionclip.data.frame_times import FrameClock, drawn_rate, frame_times
from regionclip.data.image_sources import find_images, read_frames
from regionclip.data.user_boxes import read_boxes
from regionclip.errors import UserError
from tests.helpers.paths import DATA

SIZE = (128, 96)


def write(path, frames=4, rate=10):
    photo = Image.open(sorted((DATA / "four_photos" / "images").iterdir())[0]).convert("RGB").resize(SIZE)
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


@pytest.fixture(params=["H.264", "MPEG-4"])
def encoder(request, monkeypatch):
    """Return the class that encodes drawn videos: that of PyAV, then the one without it."""
    if request.param == "H.264" and not can_write_h264():
        pytest.skip("PyAV is not installed")
    monkeypatch.setattr(video_module, "can_write_h264", lambda: request.param == "H.264")
    return {"H.264": H264Encoder, "MPEG-4": MPEG4Encoder}[request.param]


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


def test_a_drawn_video_plays_as_its_source(detector, uneven, encoder, tmp_path):
    run(detector, uneven, tmp_path / "out")
    frames = shown(tmp_path / "out" / "videos" / "uneven.mp4.mp4")
    steady = [0.1 * i for i in range(53)]
    expected = [0, 0.1, 5.1, 5.2] if encoder is H264Encoder else steady
    assert [seconds for seconds, _ in frames] == pytest.approx(expected, abs=2e-3)
    # The second frame is seen until the third comes.
    differences = [np.abs(after[1] - before[1]).mean() for before, after in itertools.pairwise(frames)]
    changes = [number for number, difference in enumerate(differences, start=1) if difference > 5]
    assert changes == ([1, 2, 3] if encoder is H264Encoder else [1, 51, 52])


@pytest.mark.parametrize(("rate", "every", "expected"), [(10, 1, 10), (10, 3, 10 / 3), (24000 / 1001, 1, 24000 / 1001)])
def test_a_steady_video_has_its_rate_and_each_frame_once(rate, every, expected, detector, encoder, tmp_path):
    path = write(tmp_path / "v.mp4", frames=7, rate=rate)
    assert drawn_rate(path, every) == pytest.approx(expected, rel=1e-4)
    report = run(detector, path, tmp_path / "out", every=every)
    frames = shown(tmp_path / "out" / "videos" / "v.mp4.mp4")
    assert len(frames) == len(report.results) == -(-7 // every)
    assert [seconds for seconds, _ in frames] == pytest.approx([i / expected for i in range(len(frames))], abs=2e-3)


@pytest.mark.parametrize("name", ["12:30:05.mp4", "~noon.mp4"])
def test_names_that_look_like_something_else(detector, encoder, tmp_path, monkeypatch, name):
    """FFmpeg takes what stands before a colon for a protocol; no user is called `noon`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    report = run(detector, name, Path("run:1"))
    assert len(report.results) == 4 and not report.failures
    (drawn,) = Path("run:1/videos").iterdir()
    assert len(frame_times(drawn)) == 4


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


def test_frames_that_no_video_can_have_are_named(encoder, tmp_path):
    message = r"none with frames of 2 x 40000 pixels\. Fix: leave it out with --no-drawings"
    with pytest.raises(UserError, match=message), VideoWriter(tmp_path / "d.mp4", 10) as video:
        video.write(np.zeros((40000, 2, 3), np.uint8), 0.0)
    assert not list(tmp_path.iterdir())


def test_a_video_that_was_not_written_whole_is_none(encoder, tmp_path, monkeypatch):
    close = encoder.close

    def close_and_cut(self):
        close(self)
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:100])

    def interrupted():
        with VideoWriter(tmp_path / "d.mp4", 10) as video:
            video.write(np.zeros((48, 64, 3), np.uint8), 0.0)

    monkeypatch.setattr(encoder, "close", close_and_cut)
    with pytest.raises(UserError, match="expected a video that can be written, got one of 0 frames instead of 1"):
        interrupted()
    monkeypatch.setattr(video_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left") as caught:
        interrupted()
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_browser_plays_the_drawn_video(detector, tmp_path):
    """H.264 in YUV 4:2:0 with even sides and the right colors, and the index before the frames."""
    av = pytest.importorskip("av")
    with VideoWriter(tmp_path / "odd.mp4", 10) as video:
        pixels = np.full((47, 63, 3), (200, 30, 60), np.uint8)
        for number in range(3):
            video.write(pixels, 7 + number / 10)
    data = (tmp_path / "odd.mp4").read_bytes()
    kinds = [kind for _, _, kind in atoms(data, 0, len(data))]
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    with av.open(str(tmp_path / "odd.mp4")) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 48)
        frames = list(container.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2])
    np.testing.assert_allclose(frames[0].to_ndarray(format="rgb24")[:47, :63], pixels, atol=6)
    (first, *_), *_ = [shown(tmp_path / "odd.mp4")]
    np.testing.assert_allclose(first[1][:47, :63], pixels, atol=6)


def test_a_stream_may_change_its_size(encoder, tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 10) as video:
        for number, (height, width) in enumerate([(48, 64), (96, 128), (48, 64)]):
            video.write(np.full((height, width, 3), 90, np.uint8), number / 10)
    assert [pixels.shape for _, pixels in shown(tmp_path / "v.mp4")] == [(48, 64, 3)] * 3


def test_without_pyav_a_line_says_how_to_get_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(video_module, "can_write_h264", lambda: False)
    video_module._without_h264.cache_clear()
    for name in ("a.mp4", "b.mp4"):
        with caplog.at_level("INFO", "regionclip.batch.video"), VideoWriter(tmp_path / name, 10) as video:
            video.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        'Videos are written as MPEG-4 Part 2, which browsers do not play: pip install "regionclip[video]" writes H.264'
    ]


QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
"""The display matrix of a phone that was held upright: its frames are shown after a quarter turn clockwise."""


@pytest.fixture
def turned(tmp_path):
    data = bytearray(write(tmp_path / "landscape.mp4").read_bytes())
    place, _ = find(data, b"moov", b"trak", b"tkhd")
    data[place + 48 : place + 84] = QUARTER_TURN
    (tmp_path / "turned.mp4").write_bytes(data)
    return tmp_path / "turned.mp4"


def test_videos_of_phones_are_upright(detector, turned, encoder, tmp_path):
    recorded = shown(tmp_path / "landscape.mp4")
    upright = shown(turned)
    assert len(upright) == 4
    for (_, expected), (_, pixels) in zip(recorded, upright, strict=True):
        np.testing.assert_array_equal(pixels, np.rot90(expected, -1))
    report = run(detector, turned, tmp_path / "out", every=1)
    assert {(result["width"], result["height"]) for result in report.results} == {SIZE[::-1]}
    drawn = shown(tmp_path / "out" / "videos" / "turned.mp4.mp4")
    for (_, expected), (_, pixels) in zip(upright, drawn, strict=True):
        assert pixels.shape == expected.shape
        # Boxes are drawn over it, but far from everywhere.
        assert np.median(np.abs(pixels - expected)) < 12 < np.median(np.abs(pixels[::-1, ::-1] - expected))


def test_uneven_and_turned_h264_with_frames_out_of_order(detector, tmp_path):
    """As phones record: H.264 with B-frames, a variable frame rate and a rotation."""
    av = pytest.importorskip("av")
    times = [0, 40, 85, 400, 433, 900]
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.set_display_rotation(90)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), 40 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "phone.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
    report = run(detector, tmp_path / "phone.mp4", tmp_path / "out", every=2)
    assert [result["seconds"] for result in report.results] == pytest.approx([0, 0.085, 0.433], abs=1e-3)
    assert (report.results[0]["width"], report.results[0]["height"]) == SIZE[::-1]
    drawn = shown(tmp_path / "out" / "videos" / "phone.mp4.mp4")
    assert [seconds for seconds, _ in drawn] == pytest.approx([0, 0.085, 0.433], abs=1e-3)
    assert [np.median(pixels) for _, pixels in drawn] == pytest.approx([0, 80, 160], abs=12)
