"""`detect` on tar shards, Parquet files and addresses: as on the files, with failures by image, in shards, resumed."""

import json
import os

import pytest
from PIL import Image

from regionclip.journal import Journal
from tests.helpers.archives import write_table, write_tar
from tests.helpers.videos import PHOTOS


@pytest.fixture
def archives(tmp_path):
    """Write photos as files, in a shard with a broken member and a cut end, in a table, and as a list."""
    photos = []
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(PHOTOS):
        with Image.open(photo) as image:
            image.save(tmp_path / "photos" / f"{number}.png")
        photos.append((f"{number}.png", (tmp_path / "photos" / f"{number}.png").read_bytes()))
    write_tar(tmp_path / "good.tar", photos)
    write_tar(tmp_path / "bad.tar", [photos[0], ("broken.png", b"nothing"), *photos[1:]])
    content = (tmp_path / "bad.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(content[: content.rindex(photos[-1][1]) + 100])
    return tmp_path


@pytest.fixture
def found(command, archives, detector_folder):
    """Run `detect` and return exit code, JSON line, and detections by the last part of the image's name."""
    given = ["--words", "cat, traffic cone", "--model", detector_folder, "--device", "cpu", "--json"]

    def run(*arguments, output="found"):
        code, text, error = command("detect", *arguments, *given, "--output", output)
        assert code in (0, 1), error
        content = json.loads((archives / output / "detections.json").read_text())
        names = {image["id"]: image["file_name"].rpartition("/")[2] for image in content["images"]}
        results = {name: [] for name in names.values()}
        for entry in content["annotations"]:
            results[names[entry["image_id"]]].append((entry["category_id"], entry["score"], entry["bbox"]))
        return code, json.loads(text.splitlines()[-1]), results

    return run


def test_a_shard_is_as_good_as_its_files(found, archives):
    _, _, expected = found("photos")
    code, line, results = found("good.tar")
    assert (code, results) == (0, expected) and any(expected.values())
    assert [image["file"] for image in line["images"]] == [f"good.tar/{number}.png" for number in range(4)]
    assert (archives / "found" / "drawings" / "good.tar" / "0.png").is_file()


def test_tables_and_addresses_are_as_good_as_files(found, archives):
    fsspec, _ = pytest.importorskip("fsspec"), pytest.importorskip("pyarrow")
    _, _, expected = found("photos")
    photos = sorted((archives / "photos").iterdir())
    rows = [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos]
    write_table(archives / "bytes.parquet", {"image": rows, "label": range(4)})
    write_table(archives / "paths.parquet", {"path": [f"photos/{photo.name}" for photo in photos]})
    for photo in photos:
        fsspec.filesystem("memory").pipe(f"/shop/{photo.name}", photo.read_bytes())
    for name in ("bytes.parquet", "paths.parquet", "memory://shop/*.png"):
        code, line, results = found(name, "--no-drawings", "--no-report", output="other")
        assert (code, results) == (0, expected), name
    assert line["images"][0]["file"] == "memory://shop/0.png"


def test_all_shards_of_an_archive_are_the_whole_with_its_failures(found):
    whole_code, whole, _ = found("bad.tar", "good.tar")
    assert whole_code == 1 and len(whole["failures"]) == 2
    assert any("bad.tar/broken.png: cannot identify" in line for line in whole["failures"])
    assert any("bad.tar/3.png: damaged after" in line for line in whole["failures"])
    images, failures = [], []
    for index in range(3):
        _, line, _ = found("bad.tar", "good.tar", "--shard", f"{index}/3", output=str(index))
        images += line["images"]
        failures += line["failures"]

    def by_name(entries):
        return {entry["file"]: entry["detections"] for entry in entries}

    assert by_name(images) == by_name(whole["images"]) and len(images) == len(whole["images"]) == 7
    assert sorted(failures) == sorted(whole["failures"])


def test_an_interrupted_run_goes_on_in_the_middle_of_its_shard_and_of_no_other(
    command, found, archives, detector_folder, monkeypatch
):
    append, noted = Journal.append, []

    def stop_after_two(self, predictions):
        if len(noted) == 2:
            raise KeyboardInterrupt
        noted.append(1)
        append(self, predictions)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", stop_after_two)
        given = ["--words", "cat, traffic cone", "--model", detector_folder, "--device", "cpu", "--json"]
        assert command("detect", "good.tar", *given, "--output", "stopped")[0] == 130
    state = (archives / "good.tar").stat()
    os.utime(archives / "good.tar", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    code, _, error = command("detect", "good.tar", *given, "--output", "stopped")
    assert code == 2 and "those of a run with other words, model, images or options" in error
    os.utime(archives / "good.tar", ns=(state.st_atime_ns, state.st_mtime_ns))
    code, text, _ = command("detect", "good.tar", *given, "--output", "stopped")
    assert code == 0 and "2 of them by an interrupted run" in text
    images = json.loads(text.splitlines()[-1])["images"]
    assert [image["file"] for image in images] == [f"good.tar/{number}.png" for number in range(4)]
    _, line, _ = found("good.tar", output="whole")
    assert [image["detections"] for image in images] == [image["detections"] for image in line["images"]]


def test_the_boxes_of_a_run_are_found_again_in_the_shard(found, archives):
    found("good.tar")
    boxes = json.loads((archives / "found" / "detections.json").read_text())
    (archives / "boxes.json").write_text(json.dumps(boxes))
    code, line, _ = found("good.tar", "--boxes", "boxes.json", output="again")
    assert code == 0 and sum(len(image["detections"]) for image in line["images"]) == len(boxes["annotations"])
