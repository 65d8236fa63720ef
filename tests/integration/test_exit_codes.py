"""How commands end where the system, a reader or a folder does not do what they need."""

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from regionclip.batch.detect import DetectOptions, detect
from regionclip.cli.main import main
from regionclip.console import streams_that_may_close
from regionclip.data.image_sources import ImageFile, find_images
from regionclip.engine import command as command_module
from regionclip.engine.command import report_user_errors, run_command
from regionclip.errors import UserError, user_error
from regionclip.files import atomic_write
from tests.helpers.paths import DATA, REPOSITORY

PHOTOS = DATA / "four_photos" / "images"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def raiser(error):
    def action():
        raise error

    return action


ENDS = {
    "bad input": (
        user_error("file", "one", "none", "give one"),
        2,
        "error: file: expected one, got none. Fix: give one",
    ),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "out/a.png"),
        3,
        "error: out/a.png: expected space to write, got No space left on device. Fix: free some",
    ),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), 3, "error: a: expected space to write"),
    "no permission": (
        PermissionError(errno.EACCES, "Permission denied", "w.pth"),
        3,
        "expected permission to read and",
    ),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "w.pth"), 3, "error: w.pth: expected permission"),
    "broken disk": (OSError(errno.EIO, "Input/output error", "w.pth"), 3, "check the path and the disk"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), 3, "raise the limit of open files (ulimit -n)"),
    "memory": (MemoryError(), 4, "error: memory: expected enough, got none left. Fix: use smaller images"),
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried"), 4, "got CUDA out of memory. Tried"),
    "memory of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "memory: expected"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_one_line_and_its_code(end, capsys):
    error, code, line = ENDS[end]
    with pytest.raises(SystemExit) as stop:
        run_command(raiser(error))
    assert stop.value.code == code
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_the_table_of_exit_codes_is_that_of_the_code():
    rows = [line.split("|")[1:3] for line in (REPOSITORY / "docs" / "detect.md").read_text().splitlines()]
    documented = {int(row[0]) for row in rows if len(row) == 2 and row[0].strip().isdecimal()}
    names = ("DONE", "SOME_FAILED", "BAD_INPUT", "SYSTEM_REFUSED", "NO_MEMORY", "INTERRUPTED")
    assert documented == {getattr(command_module, name) for name in names}


def test_an_error_of_the_program_is_none_of_the_user():
    for error in (RuntimeError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error), match="a bug"):
            report_user_errors(raiser(error))


@pytest.fixture
def small_files():
    """Let no file of this process grow above 2000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITES = {"bytes": lambda file: file.write(bytes(9999)), "torch": lambda file: torch.save(torch.rand(999), file)}


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_that_fails_names_its_file_and_leaves_nothing(kind, tmp_path, small_files, capsys):
    def save():
        with atomic_write(tmp_path / "a.bin") as file:
            WRITES[kind](file)

    with pytest.raises(SystemExit) as stop:
        report_user_errors(save)
    assert stop.value.code == 3
    assert f"error: {tmp_path / 'a.bin'}: expected space to write, got File too large" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_put_in_its_place_is_named(tmp_path):
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught, atomic_write(tmp_path / "a.pth") as file:
        file.write(b"content")
    assert caught.value.filename == str(tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def arguments(folder, output):
    options = ["--words", "cat, dog", "--model", str(folder), "--output", str(output), "--threshold", "0"]
    return [sys.executable, "-m", "regionclip", "detect", str(PHOTOS), *options]


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(detector_folder, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    command = arguments(detector_folder, tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "expected space to write" in lines[0] and str(tmp_path / "out") in lines[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 4
    assert len(list((tmp_path / "out" / "drawings").iterdir())) == 4


def test_a_reader_that_goes_away_does_not_end_the_work(detector_folder, tmp_path):
    command = arguments(detector_folder, tmp_path / "out")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=tmp_path
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 0
    assert not [word for word in ("Traceback", "Logging error", "Broken pipe", "BrokenPipe") if word in error], error
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 4


def test_streams_without_a_reader_swallow_what_is_written():
    reading, writing = os.pipe()
    os.close(reading)
    before, stream = sys.stdout, os.fdopen(writing, "w")
    try:
        sys.stdout = stream
        with streams_that_may_close():
            for _ in range(9):
                print("x" * 9999, flush=True)
        assert sys.stdout is stream
        stream.flush()
    finally:
        sys.stdout = before
        stream.close()


def test_a_log_file_that_is_full_is_told_once(tmp_path, small_files, capsys, monkeypatch):
    package = logging.getLogger("regionclip")
    handler = command_module._LogFile(tmp_path / "log.txt")
    monkeypatch.setattr(package, "handlers", [handler])
    monkeypatch.setattr(package, "propagate", False)
    for _ in range(4):
        package.warning("x" * 900)
    handler.stream = None
    error = capsys.readouterr().err
    assert error.count("log.txt cannot be written further") == 1
    assert "Logging error" not in error


def test_a_log_file_whose_folder_is_gone_is_told_once(tmp_path, capsys, monkeypatch):
    package = logging.getLogger("regionclip")
    (tmp_path / "out").mkdir()
    handler = command_module._LogFile(tmp_path / "out" / "log.txt")
    monkeypatch.setattr(package, "handlers", [handler])
    monkeypatch.setattr(package, "propagate", False)
    handler.close()
    shutil.rmtree(tmp_path / "out")
    for _ in range(2):
        package.warning("still here")
    assert capsys.readouterr().err.count("log.txt cannot be written further") == 1


def test_images_are_never_replaced_by_what_is_drawn_of_them(tmp_path):
    for name in ("out/drawings/a.jpg", "out/thumbnails/b.png.0.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(next(PHOTOS.iterdir()).read_bytes())
    (tmp_path / "link").symlink_to("out")
    alone = find_images([str(tmp_path / "out" / "drawings" / "a.jpg")])
    noted = [
        ImageFile(tmp_path / "out" / "thumbnails" / "b.png.0.jpg", "b.png"),
        ImageFile(tmp_path / "c.png", "c.png"),
    ]
    for files in (alone, noted[:1]):
        before = files[0].path.read_bytes()
        for output in (tmp_path / "out", tmp_path / "link"):
            with pytest.raises(UserError, match="which would be replaced"):
                detect(None, files, output, DetectOptions())
        assert files[0].path.read_bytes() == before


def test_a_detector_is_not_packed_into_its_own_folder(detector_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["regionclip", "pack", str(detector_folder), "--output", str(detector_folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "expected another folder than that of the detector, got the same" in capsys.readouterr().err
