"""`detect --shard`: parts of the images that together are the whole."""

import json

import pytest
from PIL import Image

from regionclip.batch.shards import Shard
from regionclip.errors import UserError
from tests.helpers.videos import PHOTOS, write_video


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["a.jpg", "b.png", "in/a.jpg", "in/c.jpg", "in/deep/d.jpg"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(PHOTOS[number % len(PHOTOS)]).save(path)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    write_video(tmp_path / "photos" / "clip.mp4", frames=3)
    boxes = {"a.jpg": [[5, 5, 60, 60]], "in/c.jpg": [[1, 1, 30, 30]], "clip.mp4#1": [[2, 2, 40, 40]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def results_of(content):
    """Return the detections of each image by its name, without ids, which count within a shard."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image = {image["id"]: (image["file_name"], image.get("frame", 0)) for image in content["images"]}
    results = {name: [] for name in by_image.values()}
    for entry in content["annotations"]:
        results[by_image[entry["image_id"]]].append((names[entry["category_id"]], entry["score"], entry["bbox"]))
    return results


@pytest.mark.parametrize("extra", [(), ("--boxes", "boxes.json")], ids=["detections", "user boxes"])
def test_all_shards_together_are_the_whole(command, folder, detector_folder, extra):
    given = ["photos", "--words", "cat, traffic cone", "--model", detector_folder, "--device", "cpu", *extra]
    found, failures = {}, []
    for name, options in (("whole", ()), *((str(i), ("--shard", f"{i}/3")) for i in range(3))):
        code, output, error = command("detect", *given, *options, "--output", name, "--json")
        assert code in (0, 1), error
        found[name] = results_of(json.loads((folder / name / "detections.json").read_text()))
        failures.append(json.loads(output.splitlines()[-1])["failures"])
    whole = found.pop("whole")
    assert len(whole) >= 5 and any(whole.values())
    assert all(found.values())
    assert sum(map(len, found.values())) == len(whole)
    assert {name: entries for part in found.values() for name, entries in part.items()} == whole
    assert len(failures[0]) == 1 and sorted(line for part in failures[1:] for line in part) == failures[0]


@pytest.mark.parametrize("place", ["photos", ".", "**/*.jpg"])
def test_shards_do_not_find_each_others_results(command, folder, detector_folder, place):
    """Without `--output` they write below the folder that each of them searches."""
    given = [place, "--words", "cat", "--model", detector_folder, "--device", "cpu", "--json"]
    images = []
    for number in range(3):
        code, output, error = command("detect", *given, "--shard", f"{number}/3")
        assert code in (0, 1), error
        line = json.loads(output.splitlines()[-1])
        images += [image["file"] for image in line["images"]] + [failure for failure in line["failures"]]
    assert (folder / "output" / "detect" / "0-of-3" / "drawings").is_dir()
    whole = command("detect", *given, "--output", "whole")[1]
    line = json.loads(whole.splitlines()[-1])
    assert sorted(images) == sorted([image["file"] for image in line["images"]] + line["failures"])


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/3", "1/0", "0/3/1"])
def test_a_shard_that_is_none_is_an_error(text):
    with pytest.raises(UserError, match=r"--shard: expected INDEX/COUNT"):
        Shard.parse(text)
    assert Shard.parse("") is None
