"""Live sources: what is one, and that only the newest frame is kept."""

import http.server
import io
import itertools
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from regionclip.addresses import masked
from regionclip.data.live import LiveReader, is_live, live_source, open_capture
from regionclip.errors import UserError
from tests.helpers.cameras import FakeCamera

SECRET = "h@nter/2"
UNREACHABLE = f"rtsp://admin:{SECRET}@127.0.0.1:9/ch1"
QUICK = (0.01, 0.01, 0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, True) for name in ("0", "12", "/dev/video2", "rtsp://host/stream", "RTSP://u:p@host:554/a.mp4")],
        *[(name, True) for name in ("http://host/video.mjpg", "https://host/live/index.m3u8", "udp://@:1234")],
        *[(name, False) for name in ("a.jpg", "-", "photos/", "*.mp4", "20240101", "0.mp4", "s3://bucket/a.jpg")],
        *[(name, False) for name in ("https://host/photo.jpg", "https://host/street.mp4?x=1", "C://a")],
    ],
)
def test_what_is_live(name, expected):
    assert is_live(name) is expected


def test_a_folder_with_the_name_of_a_number_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_live("0")
    (tmp_path / "0").mkdir()
    assert not is_live("0")


@pytest.mark.parametrize(
    ("address", "origin", "name"),
    [
        ("3", "camera 3", "camera_3"),
        ("/dev/video3", "/dev/video3", "dev_video3"),
        ("rtsp://host:554/ch1", "rtsp://host:554/ch1", "rtsp_host_554_ch1"),
        (f"rtsp://admin:{SECRET}@host/ch1", "rtsp://***@host/ch1", "rtsp_host_ch1"),
        (f"http://host/v.cgi?user=a&pwd={SECRET}&ch=1", "http://host/v.cgi?user=a&pwd=***&ch=1", None),
        (f"https://host/i.m3u8?Access_Token={SECRET}", "https://host/i.m3u8?Access_Token=***", None),
    ],
)
def test_results_name_a_source_without_its_password(address, origin, name):
    source = live_source([address])
    assert source.address == address and source.place == origin
    assert name in (None, source.name) and source.is_video
    for text in (source.name, str(source.path), repr(source), masked(f"regionclip detect {address} --words cat")):
        assert SECRET not in text and "nter" not in text
    assert masked("regionclip detect a.jpg --words 'a@b'") == "regionclip detect a.jpg --words 'a@b'"


def test_a_live_source_comes_alone():
    assert live_source(["a.jpg", "b.mp4"]) is None
    with pytest.raises(UserError, match=r"files, or one live source alone, got rtsp://\*\*\*@host/1 among 2 inputs"):
        live_source(["a.jpg", "rtsp://u:p@host/1"])


def reader_of(*cameras, **options):
    """Return a reader that opens one camera after the other, and then none."""
    left = list(cameras)
    return LiveReader(
        live_source(["0"]),
        open_source=lambda address: left.pop(0) if left else FakeCamera(0),
        retry_seconds=QUICK,
        **options,
    )


def test_a_slow_consumer_gets_the_newest_frame():
    camera, taken = FakeCamera(interval=0.02), []
    with reader_of(camera) as reader:
        time.sleep(0.1)  # as while a detector is loaded
        for frame in reader.frames():
            dropped, age = reader.dropped, camera.given - 1 - int(frame.pixels[0, 0, 0])
            taken.append(frame)
            assert age <= 3
            assert 0 <= dropped - (frame.number + 1 - len(taken)) <= 3
            if len(taken) == 4:
                break
            time.sleep(0.2)
    assert taken[0].number <= 3 and taken[0].seconds == 0
    assert np.diff([frame.number for frame in taken]).min() >= 3
    assert np.diff([frame.seconds for frame in taken]).min() >= 0.1
    assert taken[0].captured < taken[-1].captured
    assert camera.is_released
    assert not [thread for thread in threading.enumerate() if thread.name == "live"]


def test_a_quick_consumer_gets_every_frame_in_rgb():
    taken, frames = threading.Semaphore(1), []
    camera = FakeCamera(frames=8, interval=0, count=8, on_frame=lambda given: taken.acquire(timeout=5))
    read = camera.read

    def colored():
        decoded, pixels = read()
        return decoded, pixels * np.uint8([1, 2, 3]) if decoded else None

    camera.read = colored
    with reader_of(camera) as reader:
        for frame in reader.frames():
            frames.append(frame)
            taken.release()
    assert [frame.number for frame in frames] == list(range(8)) and reader.dropped == 0
    assert [frame.pixels[0, 0].tolist() for frame in frames] == [[3 * i, 2 * i, i] for i in range(8)]
    assert reader.problem == ""


def test_a_recording_is_played_at_its_own_speed():
    """It is 25 frames per second, as fast as they may come; and it waits for its consumer."""
    with reader_of(FakeCamera(frames=9, interval=0, count=9)) as reader:
        time.sleep(0.3)
        frames = list(reader.frames())
    assert frames[0].number == 0 and frames[-1].number == 8
    assert frames[1].seconds >= 0.039 and frames[-1].seconds >= 0.319
    assert reader.problem == ""


def test_every_and_seconds():
    with reader_of(FakeCamera(), every=5, seconds=0.5) as reader:
        frames = list(reader.frames())
    assert len(frames) >= 2 and {frame.number % 5 for frame in frames} == {0}
    assert frames[-1].seconds <= 0.5
    assert reader.problem == ""


def test_the_report_lists_a_frame_per_second(monkeypatch):
    monkeypatch.setattr("regionclip.data.live.LISTED_SECONDS", 0.1)
    with reader_of(FakeCamera(interval=0.01), seconds=0.5) as reader:
        frames = list(reader.frames())
    listed = [frame.seconds for frame in frames if frame.is_listed]
    assert listed[0] == 0 and 2 <= len(listed) <= 6
    assert np.diff(listed).min() >= 0.1


def test_a_source_that_breaks_off_is_opened_again(caplog):
    cameras = [FakeCamera(3, 0.02), FakeCamera(0), FakeCamera(4, 0.02, size=(64, 48))]
    with caplog.at_level("WARNING"), reader_of(*cameras) as reader:
        frames = list(reader.frames())
    assert frames[-1].pixels.shape == (48, 64, 3) and frames[-1].pixels[0, 0, 0] == 3
    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})
    assert all(after.seconds > before.seconds for before, after in itertools.pairwise(frames))
    assert reader.problem == "camera 0: no more frames, also after 3 tries to open it again"
    assert all(camera.is_released for camera in cameras)
    # Twice after the first camera, then thrice in vain.
    assert len(caplog.messages) == 5 and caplog.messages[0] == "camera 0: no frames; try 1 to open it again"


def test_what_fails_while_reading_is_told_without_the_password():
    def fail(given):
        if given == 3:
            raise RuntimeError(f"rtsp://u:{SECRET}@host: bad")

    with reader_of(FakeCamera(on_frame=fail)) as reader:
        list(reader.frames())
    assert reader.problem == "camera 0: rtsp://***@host: bad"


@pytest.mark.parametrize("camera", [FakeCamera(0), FakeCamera(10**9, 60)], ids=["unplugged", "silent"])
def test_stop_ends_the_frames_at_once(camera):
    """Also while the source gives nothing, or cannot be opened again."""
    first = FakeCamera(1, 0)
    reader = LiveReader(live_source(["0"]), open_source=lambda _: first if not first.is_released else camera)
    with reader:
        threading.Timer(0.1, reader.stop).start()
        begin = time.monotonic()
        assert len(list(reader.frames())) <= 1
        assert time.monotonic() - begin < 3
    assert time.monotonic() - begin < 8
    assert reader.problem == ""


def test_a_source_that_cannot_be_opened_is_one_error():
    with pytest.raises(UserError, match="camera 0: expected a camera or stream that gives frames, got none"):
        reader_of().__enter__()
    with pytest.raises(UserError) as error, LiveReader(live_source([UNREACHABLE])):
        pass
    assert str(error.value).startswith("rtsp://***@127.0.0.1:9/ch1: expected a camera or stream that gives frames")
    assert "nter" not in str(error.value)


def test_nothing_prints_the_password():
    """In a process of its own, since FFmpeg decides at its start what it prints."""
    code = f"from regionclip.data.live import open_capture; open_capture({UNREACHABLE!r}).read()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nter" not in done.stdout + done.stderr


class Stream(http.server.BaseHTTPRequestHandler):
    """Motion JPEG, as cameras in a network serve it."""

    def do_GET(self):
        if self.headers.get("Authorization") is None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        self.end_headers()
        for number in range(200):
            jpeg = io.BytesIO()
            Image.fromarray(np.full((96, 128, 3), number, np.uint8)).save(jpeg, "JPEG")
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")
            except OSError:
                return
            time.sleep(0.01)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stream():
    """Return the address of a served stream, with a password."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:hunter@127.0.0.1:{server.server_port}/video.mjpg"
        server.shutdown()


def test_a_stream_in_the_network_is_read(stream):
    capture = open_capture(stream)
    assert capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    capture.release()
    with LiveReader(live_source([stream]), seconds=0.8) as reader:
        frames = []
        for frame in reader.frames():
            frames.append(frame)
            time.sleep(0.08)
    assert len(frames) >= 2 and reader.dropped >= len(frames)
    assert {frame.pixels.shape for frame in frames} == {(96, 128, 3)}
    assert np.diff([int(frame.pixels[0, 0, 0]) for frame in frames]).min() >= 2
