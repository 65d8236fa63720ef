"""Images are read ahead and results written behind, with what comes out unchanged."""

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

from regionclip.batch.encode_ahead import EncodeAhead
from regionclip.batch.write_behind import JOBS_BEHIND, WriteBehind
from regionclip.data import read_ahead
from regionclip.data.image_sources import ImageFile, read_frames
from regionclip.data.images import UnreadableImageError
from regionclip.data.read_ahead import FILES_AHEAD, ReadAhead
from tests.helpers.videos import write_video


@pytest.fixture
def files(tmp_path):
    """Return images, a broken one, and videos longer than what is read ahead, a broken one too."""
    for number in range(12):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    write_video(tmp_path / "05.mp4", frames=20)
    (tmp_path / "07.mp4").write_bytes(b"no video")
    write_video(tmp_path / "11.mp4", frames=9)
    return [ImageFile(path, path.name) for path in sorted(tmp_path.iterdir())]


def taken(frames):
    """Return the frames as far as they go, and the message of what ended them."""
    result = []
    try:
        for frame in frames:
            result.append((frame.number, frame.seconds, frame.pixels.tobytes()))
    except UnreadableImageError as error:
        return result, str(error)
    return result, None


def as_it_is(frame):
    return frame


@pytest.mark.parametrize("every", [1, 4])
def test_frames_and_errors_come_as_without_it(files, every):
    with ReadAhead(files, as_it_is, every) as reader:
        assert [taken(reader.frames(file)) for file in files] == [taken(read_frames(file, every)) for file in files]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_frames_are_encoded_some_at_a_time_and_come_as_without_it(files, count):
    encoded = []

    def encode(batch):
        encoded.append([(file.name, frame.number) for file, frame in batch])

    with ReadAhead(files, as_it_is) as reader:
        source = EncodeAhead(reader, files, encode, count)
        for file in files:
            frames, expected = source.frames(file), taken(read_frames(file))
            if file.name == "05.mp4":  # of which no more is wanted
                expected, frames = (expected[0][:4], None), itertools.islice(frames, 4)
            assert taken(frames) == expected
            assert {(file.name, number) for number, *_ in expected[0]} <= set(itertools.chain(*encoded))
    assert {len(batch) for batch in encoded[:-1]} <= {count}


def test_files_are_decoded_before_they_are_asked_for(files, monkeypatch):
    begun, enough = [], threading.Event()

    def read(file, every):
        begun.append(file.name)
        if len(begun) == FILES_AHEAD + 1:
            enough.set()
        yield from read_frames(file, every)

    monkeypatch.setattr(read_ahead, "read_frames", read)
    with ReadAhead(files, as_it_is) as reader:
        taken(reader.frames(files[0]))
        assert enough.wait(20)
    assert len(begun) == FILES_AHEAD + 1


def test_preparing_happens_in_other_threads_and_may_fail(files):
    def prepare(frame):
        if frame.pixels.max() == 2:
            raise UnreadableImageError("too dark")
        return threading.current_thread().name

    with ReadAhead(files, prepare) as reader:
        assert next(reader.frames(files[0])).startswith("decode")
        assert next(reader.frames(files[1])).startswith("decode")
        with pytest.raises(UnreadableImageError, match="too dark"):
            next(reader.frames(files[2]))


def test_what_nobody_takes_holds_nothing_up(files):
    videos = [file for file in files if file.is_video] * 4
    with ReadAhead(videos + files, as_it_is) as reader:
        left = []
        for video in videos:
            left.append(reader.frames(video))  # as when what is done with a frame fails
            next(left[-1], None) if "07" not in video.name else None
        assert taken(reader.frames(files[1])) == taken(read_frames(files[1]))
        left.clear()
        assert taken(reader.frames(files[4])) == taken(read_frames(files[4]))
        with pytest.raises(ValueError, match="none of the files that are left"):
            next(reader.frames(ImageFile(files[0].path, "another")))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_jobs_are_done_in_order_and_few_wait():
    done, gate = [], threading.Event()

    def job(number):
        gate.wait(20)
        done.append(number)

    with WriteBehind() as writer:
        for number in range(JOBS_BEHIND):
            writer.submit(job, number)
        assert not done
        threading.Timer(0.2, gate.set).start()
        writer.submit(job, JOBS_BEHIND)  # waits for one
        assert done
        writer.wait()
        assert done == list(range(JOBS_BEHIND + 1))


def test_what_a_job_raises_is_raised_where_they_are_waited_for():
    def fail():
        raise OSError("disk full")

    with WriteBehind() as writer:
        writer.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            writer.wait()


def test_jobs_are_finished_when_a_run_is_interrupted():
    done = []
    with pytest.raises(KeyboardInterrupt), WriteBehind() as writer:
        for number in range(3):
            writer.submit(lambda number: (time.sleep(0.05), done.append(number)), number)
        raise KeyboardInterrupt
    assert done == [0, 1, 2]
