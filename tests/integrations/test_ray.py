"""Ray Data: as many rows as images, equal to one process, also after kills."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.errors import UserError
from regionclip.integrations.ray import ImageDetector, drop_repeated
from tests.helpers.paths import DATA, REPOSITORY

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
WORDS = ["cat", "traffic cone"]
MARK = "REGIONCLIP_TEST_FOLDER"
"""Environment variable of the processes of a test."""


def test_a_row_of_each_image_has_lists_and_a_broken_one_its_error(detector_folder, tmp_path):
    answer = ImageDetector(WORDS, str(detector_folder), threshold=0.0, topk=5, embeddings=True, device="cpu")
    row = answer({"path": str(PHOTOS[0]), "owner": 7})
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary(WORDS)
    expected = detector.predict(threshold=0.0, topk=5, embeddings=True)
    assert (row["path"], row["owner"], row["error"]) == (str(PHOTOS[0]), 7, "")
    assert (row["height"], row["width"]) == expected.image_size and row["names"] == expected.names
    for name in ("boxes", "scores", "embeddings"):
        np.testing.assert_allclose(row[name], getattr(expected, name))
    of_bytes = answer({"bytes": PHOTOS[0].read_bytes()})
    assert of_bytes["boxes"] == row["boxes"] and "bytes" not in of_bytes
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    broken = answer({"path": str(tmp_path / "broken.jpg")})
    assert "broken.jpg" in broken["error"] and broken["boxes"] == broken["names"] == [] and broken["width"] == 0
    assert "no such file" in answer({"path": str(tmp_path / "none.jpg")})["error"].lower()
    answer.threshold = 1.0
    nothing = answer({"path": str(PHOTOS[0])})
    assert nothing["boxes"] == [] and nothing["error"] == "" and nothing["width"] > 0
    with pytest.raises(UserError, match="a row of the dataset: expected a column path or bytes, got url"):
        answer({"url": "http://example.com/a.jpg"})


def test_a_class_list_and_a_file_are_no_letters(detector_folder, tmp_path):
    (tmp_path / "words.txt").write_text("cat\ntraffic cone\n")
    for words in (str(tmp_path / "words.txt"), tmp_path / "words.txt"):
        answer = ImageDetector(words, str(detector_folder), device="cpu")
        assert answer.detector.vocabulary.names == ("cat", "traffic cone")


def test_ray_that_is_not_there_is_one_error(monkeypatch):
    from regionclip.integrations import ray as adapter

    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    for call in (adapter.detect, adapter.detect_to_parquet):
        with pytest.raises(
            UserError, match=r"Ray Data: expected the library ray, got not installed.*regionclip\[ray\]"
        ):
            call(None, WORDS, "output")


def test_rows_that_two_files_have_are_kept_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, paths in (("a", ["x", "y"]), ("b", ["y", "z"]), ("c", ["x"])):
        parquet.write_table(pyarrow.table({"path": paths, "from": [name] * len(paths)}), tmp_path / f"{name}.parquet")
    drop_repeated(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    rows = parquet.read_table(tmp_path).to_pylist()
    assert sorted((row["path"], row["from"]) for row in rows) == [("x", "a"), ("y", "a"), ("z", "b")]


PROGRAM = """
    import sys
    import ray
    from regionclip.integrations.ray import detect_to_parquet

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    paths = open("paths.txt").read().splitlines()
    images = ray.data.from_items([{"path": path} for path in paths])
    options = dict(concurrency=2, num_cpus=0.5, rows_per_block=5, threshold=0.3, device="cpu", embeddings=True)
    detect_to_parquet(images, ["carrot", "wood", "telescope", "hamster"], sys.argv[1], "emoji", **options)
"""


@pytest.fixture
def images(tmp_path):
    """Write 60 paths: 49 scenes in two folders with the same names, ten plain images, and a broken one."""
    scenes = sorted((REPOSITORY / "datasets" / "own_scenes" / "images").glob("*.jpg"))
    paths = []
    for number in range(49):
        path = tmp_path / "ab"[number % 2] / scenes[number // 2].name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(scenes[number // 2].read_bytes())
        paths.append(path)
    for number in range(10):
        paths.append(tmp_path / f"plain{number}.png")
        Image.new("RGB", (200, 160 + number), "gray").save(paths[-1])
    paths.append(tmp_path / "broken.jpg")
    paths[-1].write_bytes(b"nothing")
    (tmp_path / "paths.txt").write_text("\n".join(map(str, paths)))
    return paths


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_actor_lose_and_repeat_nothing(images, tmp_path):
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "job.py").write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path[1:]])}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", MARK: str(tmp_path)}
    line = [sys.executable, "job.py", "found"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, start_new_session=True) as driver:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "found_checkpoint").rglob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)
    noted = sum(parquet.read_metadata(file).num_rows for file in (tmp_path / "found_checkpoint").rglob("*.parquet"))
    assert 0 < noted < 60
    time.sleep(3)
    with subprocess.Popen(line, cwd=tmp_path, env=environment, start_new_session=True) as driver:
        while driver.poll() is None and not actors(tmp_path):
            time.sleep(0.2)
        time.sleep(4)
        for actor in actors(tmp_path)[:1]:
            os.kill(actor, signal.SIGKILL)
        assert driver.wait(900) == 0
    rows = {row["path"]: row for row in parquet.read_table(tmp_path / "found").to_pylist()}
    assert len(parquet.read_table(tmp_path / "found")) == len(rows) == 60
    one = ImageDetector(
        ["carrot", "wood", "telescope", "hamster"], "emoji", threshold=0.3, embeddings=True, device="cpu"
    )
    assert {str(path) for path in images} == rows.keys()
    for path, row in rows.items():
        expected = one({"path": path})
        assert row["names"] == expected["names"] and row["error"] == expected["error"]
        np.testing.assert_allclose(row["scores"], expected["scores"], atol=1e-6)
        np.testing.assert_allclose(row["boxes"], expected["boxes"], atol=1e-3)
    assert sum(bool(row["error"]) for row in rows.values()) == 1
    assert sum(not row["boxes"] for row in rows.values()) >= 11


def actors(folder):
    """Return the processes of the actors with a detector, of this test alone."""
    done = subprocess.run(
        ["pgrep", "-f", "ray::.*ImageDetector|ray::_MapWorker|ray::MapWorker"], capture_output=True, text=True
    )
    own = f"{MARK}={folder}\0".encode()
    return [number for number in map(int, done.stdout.split()) if own in environment_of(number)]


def environment_of(process):
    try:
        return pathlib.Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return b""
