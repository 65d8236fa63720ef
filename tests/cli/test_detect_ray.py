"""`detect --engine ray`: rows equal to those of one process, one folder for one run, clear errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from regionclip.cli.detect_ray import RUN_FILE, RayRun, content_of, minutes_work, reserved_cpus, shown
from regionclip.data.image_contents import to_text
from regionclip.data.image_sources import find_images
from regionclip.errors import UserError
from regionclip.integrations.parquet_parts import summarize
from regionclip.integrations.ray import CONTENT, ImageDetector, TableDetector
from tests.helpers.archives import write_table, write_tar
from tests.helpers.paths import REPOSITORY
from tests.helpers.videos import PHOTOS

WORDS = ["cat", "traffic cone"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drawings"], "--drawings: expected options of --engine ray, got those of the other engine"),
        (
            ["--no-report", "--crops", "--format", "csv"],
            "--report, --format, --crops: expected options of --engine ray",
        ),
        (["--output", "s3://bucket/found"], "a folder that all machines share, got an address"),
    ],
)
def test_options_of_one_process_are_refused(options, message, command):
    code, _, error = command("detect", PHOTOS[0], "--words", "cat", "--engine", "ray", *options)
    assert code == 2 and message in error


def test_options_of_ray_are_refused_without_it(command):
    code, _, error = command("detect", PHOTOS[0], "--words", "cat", "--actors", 2, "--rows-per-block", 4)
    assert code == 2 and "--actors, --rows-per-block: expected options of --engine process" in error


def test_a_command_without_ray_installed_is_one_error(command, detector_folder, monkeypatch):
    from regionclip.integrations import ray as adapter

    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    given = ["--words", "cat", "--model", detector_folder, "--engine", "ray", "--output", "found"]
    code, _, error = command("detect", PHOTOS[0], *given)
    assert code == 2 and 'pip install "regionclip[ray]"' in error


def test_one_logical_cpu_stays_for_reading():
    assert reserved_cpus(1, 2, 2) == 0.5 and reserved_cpus(1, 3, 8) == 1
    assert reserved_cpus(4, 2, 8) == 3.5 and reserved_cpus(1, 1, 1) == 0
    assert 3 * reserved_cpus(1, 3, 2) <= 1


def test_images_reach_an_actor_with_another_working_directory(detector_folder, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(PHOTOS[0].read_bytes())
    write_tar(tmp_path / "0.tar", [("b.jpg", PHOTOS[1].read_bytes()), ("c.jpg", b"nothing")])
    files = find_images(["a.jpg", "0.tar"])
    table = {"path": list(map(shown, files)), CONTENT: [to_text(content_of(file)) for file in files]}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    actor = TableDetector(WORDS, str(detector_folder), threshold=0.0, topk=3, device="cpu")
    rows = actor(pyarrow.table(table)).to_pylist()
    assert [row["path"] for row in rows] == ["a.jpg", "0.tar/b.jpg", "0.tar/c.jpg"] and CONTENT not in rows[0]
    one = ImageDetector(WORDS, str(detector_folder), threshold=0.0, topk=3, device="cpu")
    for row, photo in zip(rows[:2], PHOTOS[:2], strict=True):
        expected = one({"path": str(photo)})
        assert row["error"] == "" and len(row["names"]) == 3
        assert row["names"] == expected["names"] and row["scores"] == pytest.approx(expected["scores"])
    assert rows[2]["error"] == "0.tar/c.jpg: cannot identify image file '0.tar/c.jpg'"


def test_a_block_is_a_minutes_work_and_leaves_some_to_each_actor():
    class Detector:
        def forget_images(self):
            pass

        def set_image(self, pixels):
            pass

        def predict(self):
            time.sleep(0.05)

    files = find_images([str(PHOTOS[0].parent)])
    assert minutes_work(Detector(), files * 10, actors=2) == 5
    assert 600 <= minutes_work(Detector(), files * 5000, actors=2) <= 1200


@pytest.fixture
def parts(tmp_path):
    """Return a function that writes a part with rows of paths."""
    pytest.importorskip("pyarrow")

    def write(*paths, name="part"):
        return write_table(tmp_path / "found" / f"{name}.parquet", {"path": list(paths)})

    (tmp_path / "found").mkdir()
    return write


def test_a_run_goes_on_with_its_own_rows_only(parts, tmp_path):
    files = {"a": None, "b": None}
    run, other = RayRun(tmp_path / "found", "one"), RayRun(tmp_path / "found", "other")
    assert run.unfinished(files) == files
    parts("a")
    assert run.unfinished(files) == {"b": None}  # killed after Ray had removed its notes
    with pytest.raises(UserError, match="those of a run with other words, model, images or options"):
        other.unfinished(files)
    write_table(run.checkpoint / "x.parquet", {"path": ["b"]})
    write_table(run.checkpoint / "y.pending.parquet", {"path": ["a"]})
    (tmp_path / "found" / "y-0.parquet").write_bytes(b"PAR1, and then it was killed")
    parts("b", name="x-0")
    assert run.unfinished(files) == {"a": None}
    assert [path.name for path in run.checkpoint.iterdir()] == ["x.parquet"]
    assert not (tmp_path / "found" / "y-0.parquet").exists() and (tmp_path / "found" / "x-0.parquet").exists()
    run.finish()
    assert other.unfinished(files) == files
    assert {path.name for path in tmp_path.joinpath("found").iterdir()} == {RUN_FILE} and not run.checkpoint.exists()


def test_files_of_others_are_not_removed(parts, tmp_path):
    part = parts("a")
    with pytest.raises(UserError, match="no Parquet files, or those of this command, got 1 of others"):
        RayRun(tmp_path / "found", "one").unfinished({})
    assert part.exists()


def test_a_folder_of_parts_is_counted(tmp_path):
    pytest.importorskip("pyarrow")
    columns = {"names": [["cat", "cat"], [], ["cone"]], "notes": [[], ["x"], []], "error": ["", "broken", ""]}
    write_table(tmp_path / "a.parquet", columns)
    write_table(tmp_path / "b.parquet", columns)
    found = summarize(str(tmp_path))
    assert (found.images, found.words, found.failures) == (4, {"cat": 4, "cone": 2}, ["broken"] * 2)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_equals_one_process(tmp_path):
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    scenes = sorted((REPOSITORY / "datasets" / "own_scenes" / "images").glob("*.jpg"))
    write_tar(tmp_path / "a.tar", [(scene.name, scene.read_bytes()) for scene in scenes[:16]] + [("x.jpg", b"nothing")])
    write_table(tmp_path / "b.parquet", {"path": [str(scene) for scene in scenes[16:30]]})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path[1:]])}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    line = [sys.executable, "-m", "regionclip", "detect", "a.tar", "b.parquet", "--model", "emoji", "--device", "cpu"]
    line += ["--words", "carrot, wood, telescope, hamster", "--json"]
    on_ray = [*line, "--engine", "ray", "--actors", "2", "--rows-per-block", "3", "--output", "found"]
    with subprocess.Popen(on_ray, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 400
        while not noted(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        driver.send_signal(signal.SIGKILL)
    time.sleep(5)
    before = sum(parquet.read_metadata(file).num_rows for file in noted(tmp_path))
    assert 0 < before < 31
    done = subprocess.run(on_ray, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    (written,) = re.findall(r"(\d+) rows and", done.stdout + done.stderr)
    assert int(written) == 31 - before
    rows = {row["path"]: row for row in parquet.read_table(tmp_path / "found").to_pylist()}
    assert len(parquet.read_table(tmp_path / "found")) == len(rows) == 31
    one = [*line, "--no-drawings", "--no-report", "--output", "one"]
    single = subprocess.run(one, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    content, expected = json.loads(done.stdout.splitlines()[-1]), json.loads(single.stdout.splitlines()[-1])
    assert content["failures"] == expected["failures"] and content["images"] == len(expected["images"]) == 30
    for image in expected["images"]:
        row = rows[image["file"]]
        assert row["names"] == [found["word"] for found in image["detections"]]
        assert row["scores"] == pytest.approx([found["score"] for found in image["detections"]], abs=1e-5)
        for box, found in zip(row["boxes"], image["detections"], strict=True):
            assert box == pytest.approx(found["box"], abs=1e-2)


def noted(folder):
    """Return the files in which Ray has noted finished images."""
    files = (folder / "found_checkpoint").rglob("*.parquet")
    return [file for file in files if not file.name.endswith(".pending.parquet")]
