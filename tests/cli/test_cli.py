"""The command `regionclip` as a user types it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import regionclip
from regionclip import RegionCLIP
from regionclip.batch.detect import drawn_names
from regionclip.batch.report import write_report
from regionclip.data.image_sources import ImageFile, find_images, read_frames
from regionclip.errors import UserError
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from tests.helpers.paths import DATA, REPOSITORY
from tests.helpers.videos import PHOTOS, write_video


@pytest.fixture
def photos(tmp_path):
    """Return a folder with sub-folders, in which names repeat."""
    for i, name in enumerate(["a.jpg", "b.png", "in/a.jpg", "in/Zürich #1 100%.jpg"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(PHOTOS[i]).save(path)
    return tmp_path / "photos"


def last_json(output):
    return json.loads(output.splitlines()[-1])


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_a_folder_becomes_a_table_coco_drawings_and_a_page(command, photos, detector_folder, tmp_path):
    options = ("--words", "cat, dog,traffic cone", "--model", detector_folder, "--output", "out", "--top-words", 2)
    code, output, error = command("detect", "photos", *options, "--json")
    assert code == 0, error
    assert re.search(r"^a\.jpg +(cat|dog|traffic cone) +0\.\d\d? ", output, re.M)
    assert "Done: 4 images, " in output
    out = tmp_path / "out"
    names = ["a.jpg", "b.png", "in/Zürich #1 100%.jpg", "in/a.jpg"]
    assert sorted(path.relative_to(out / "drawings").as_posix() for path in (out / "drawings").rglob("*.*")) == names
    coco = COCO(str(out / "detections.json"))
    assert [category["name"] for category in coco.dataset["categories"]] == ["cat", "dog", "traffic cone"]
    content = last_json(output)
    assert [entry["file"] for entry in content["images"]] == [f"photos/{name}" for name in names]
    for image, entry in zip(coco.dataset["images"], content["images"], strict=True):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(entry["detections"]) > 0
        for annotation, found in zip(annotations, entry["detections"], strict=True):
            x, y, width, height = annotation["bbox"]
            np.testing.assert_allclose([x, y, x + width, y + height], found["box"], rtol=1e-6)
            assert found["top_words"][0][0] == found["word"] == coco.cats[annotation["category_id"]]["name"]
    written = ["detections.json", "drawings", "report.html", "thumbnails"]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == written


def test_the_page_has_its_data_and_no_word_can_end_it(tmp_path):
    results = [
        {"image_id": "a#0", "width": 9, "height": 9, "detections": [{"class_id": 0, "score": 0.5, "box": [0, 0, 9, 9]}]}
    ]
    page = write_report(tmp_path / "r.html", results, ["</script><b>猫"]).read_text(encoding="utf-8")
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1]
    assert json.loads(data)["words"]["0"][0] == "</script><b>猫"
    assert page.count("</script>") == 2


def test_the_page_has_the_addresses_of_files_with_any_name(tmp_path):
    """A name need not be UTF-8; scripts cannot encode the half characters that Python makes of it."""
    name = os.fsdecode(b"d\xe9 #1.jpg")
    entry = {"image_id": f"{name}#0", "width": 9, "height": 9, "detections": []}
    results = [{**entry, "thumbnail": f"thumbnails/{name}", "drawn": f"drawings/{name}"}]
    page = write_report(tmp_path / "r.html", results, []).read_text(encoding="utf-8")
    (image,) = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])["images"]
    assert (image["thumbnail"], image["drawn"]) == ("thumbnails/d%E9%20%231.jpg", "drawings/d%E9%20%231.jpg")


def stdin_of(content):
    """Return standard input, strict about UTF-8 as in most locales."""
    return io.TextIOWrapper(io.BytesIO(content if isinstance(content, bytes) else content.encode()), "utf-8", "strict")


def test_names_from_standard_input_need_not_be_utf8(command, photos, detector_folder, monkeypatch):
    name = os.fsdecode(b"caf\xe9.jpg")
    (photos / "a.jpg").rename(photos / name)
    monkeypatch.setattr(sys, "stdin", stdin_of(b"photos/caf\xe9.jpg\n"))
    code, output, error = command("detect", "-", "--words", "cat", "--model", detector_folder, "--json")
    assert code == 0, error
    assert len(json.loads(output.splitlines()[-1])["images"]) == 1


@pytest.mark.parametrize(("scores", "most"), [([], 1), ([0.3], 1), ([0.3, 2.2131], 2.22), ([1.0], 1)])
def test_the_slider_of_the_page_reaches_all_scores(scores, most, tmp_path):
    found = [{"class_id": 0, "score": score, "box": [0, 0, 9, 9]} for score in scores]
    results = [{"image_id": "a#0", "width": 9, "height": 9, "detections": found}]
    page = write_report(tmp_path / "r.html", results, ["cat"]).read_text(encoding="utf-8")
    slider = re.search(r'<input id="score" type="range" ([^>]*)>', page)[1]
    assert dict(re.findall(r'(\w+)="([^"]*)"', slider)) == {"min": "0", "max": f"{most}", "step": "0.01", "value": "0"}


def test_broken_images_are_reported_and_the_rest_is_done(command, photos, detector_folder):
    (photos / "broken.jpg").write_bytes(b"no image")
    code, output, error = command("detect", "photos", "--words", "cat, dog", "--model", detector_folder)
    assert code == 1
    assert [line for line in errors(error) if "broken.jpg" in line]
    assert "Done: 4 images" in output
    assert "1 failed" in output


def test_what_is_left_out_is_counted(command, photos, detector_folder, monkeypatch):
    for name in ("._a.jpg", ".ipynb_checkpoints/a.jpg", "notes.txt", "b.heic"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"no image")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    options = ("--words", "cat, dog", "--model", detector_folder, "--no-drawings", "--no-report", "--json")
    code, output, error = command("detect", "photos", *options)
    assert code == 0, error
    line = "Done: 4 images, .*, 0 failed; left out: 2 hidden, 1 broken links, 2 of other endings \\(.heic 1, .txt 1\\);"
    assert re.search(line, output)
    reasons = {"hidden": 2, "broken links": 1, "ending .txt": 1, "ending .heic": 1}
    assert last_json(output)["left_out"] == reasons
    _, output, _ = command("detect", "photos/*", *options)  # patterns see no hidden files
    assert last_json(output)["left_out"] == {"folders": 1, "broken links": 1, "ending .txt": 1, "ending .heic": 1}
    monkeypatch.setattr(sys, "stdin", stdin_of("\ufeffphotos/a.jpg\nphotos/._a.jpg\n"))
    code, output, error = command("detect", "-", *options)
    assert code == 0, error
    assert [entry["file"] for entry in last_json(output)["images"]] == ["photos/a.jpg"]
    assert last_json(output)["left_out"] == {"hidden": 1}


def test_transparent_pixels_are_blended_and_said(command, detector_folder, tmp_path):
    pixels = np.asarray(Image.open(PHOTOS[0]).convert("RGB"))
    seen = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    seen[:, seen.shape[1] // 2 :, 3] = 0
    Image.fromarray(seen).save(tmp_path / "a.png")
    for name, color in (("white.png", 255), ("black.png", 0)):
        flat = pixels.copy()
        flat[:, flat.shape[1] // 2 :] = color
        Image.fromarray(flat).save(tmp_path / name)
    options = ("--words", "cat, dog", "--model", detector_folder, "--no-drawings", "--no-report", "--json")
    for matte, more in (("white", ()), ("black", ("--matte", "black"))):
        _, output, _ = command("detect", "a.png", f"{matte}.png", *options, *more)
        blended, flat = last_json(output)["images"]
        assert blended["detections"] == flat["detections"] != []
        assert blended["notes"] == [f"transparent pixels on {matte}"]
        assert f"1 read with transparent pixels on {matte};" in output
        assert "notes" not in flat
    assert "matte: expected a color" in command("detect", "a.png", *options, "--matte", "glass")[2]


def test_the_folder_of_the_images_is_no_folder_for_results(command, photos, detector_folder):
    options = ("--words", "cat, dog", "--model", detector_folder, "--output")
    (photos.parent / "link").symlink_to("photos")
    for output, actual in (("photos", "the same"), ("link", "the same"), (".", "a folder around it")):
        code, _, error = command("detect", "photos", *options, output)
        assert code == 2
        assert f"output {output}: expected another folder than that of the images, photos, got {actual}" in error
    assert not (photos / "detections.json").exists()


def test_names_come_from_patterns_and_standard_input(command, photos, detector_folder, monkeypatch):
    words = ("--words", "cat, dog", "--model", detector_folder, "--no-drawings", "--no-report", "--json")
    _, output, _ = command("detect", "photos/*.jpg", "photos/a.jpg", *words)
    assert [entry["file"] for entry in last_json(output)["images"]] == ["photos/a.jpg"]
    monkeypatch.setattr(sys, "stdin", stdin_of("photos/b.png\n\nphotos/in/a.jpg\n"))
    code, output, _ = command("detect", "-", *words)
    assert code == 0
    assert [entry["file"] for entry in last_json(output)["images"]] == ["photos/b.png", "photos/in/a.jpg"]


def test_videos_are_looked_at_frame_by_frame(command, detector_folder, tmp_path):
    write_video(tmp_path / "v.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    options = ("--words", "cat, dog", "--model", detector_folder, "--every", 3, "--output", "out", "--json")
    code, output, error = command("detect", "v.mp4", "broken.mp4", *options)
    assert code == 1
    assert [line for line in errors(error) if "broken.mp4" in line]
    found = last_json(output)["images"]
    assert [(entry["frame"], entry["seconds"]) for entry in found] == [(0, 0.0), (3, 0.3), (6, 0.6)]
    assert (found[0]["width"], found[0]["height"]) == (128, 96)
    (drawn,) = find_images([str(tmp_path / "out" / "videos" / "v.mp4.mp4")])
    assert len(list(read_frames(drawn))) == 3
    images = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [image["frame"] for image in images] == [0, 3, 6]


def test_damaged_videos_give_what_they_have_and_are_reported(command, detector_folder, tmp_path):
    write_video(tmp_path / "v.avi", frames=30, codec="MJPG")
    content = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "v.avi").write_bytes(content[: len(content) // 2])
    code, output, error = command("detect", "v.avi", "--words", "cat, dog", "--model", detector_folder, "--every", 5)
    assert code == 1
    assert [line for line in errors(error) if "of 30 frames could be decoded" in line]
    assert re.search(r"Done: [1-5] images", output)
    assert (tmp_path / "output" / "detect" / "videos" / "v.avi.mp4").is_file()


def test_nothing_is_written_outside_of_the_output_or_twice(command, detector_folder, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    for name in ("a.jpg", "inner/b.jpg"):
        (tmp_path / name).write_bytes(PHOTOS[0].read_bytes())
    before = (tmp_path / "a.jpg").read_bytes()
    options = ("--words", "cat, dog", "--model", detector_folder, "--output", tmp_path / "inner" / "out", "--json")
    monkeypatch.chdir(tmp_path / "inner")
    code, output, _ = command("detect", "b.jpg", "../a.jpg", tmp_path / "a.jpg", "../inner/b.jpg", *options)
    assert code == 0
    assert len(last_json(output)["images"]) == 2
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_results_inside_the_searched_folder_are_no_images(command, photos, detector_folder):
    options = ("--words", "cat, dog", "--model", detector_folder, "--output", "photos/found", "--json")
    for _ in range(2):
        code, output, _ = command("detect", "photos", *options)
        assert code == 0
        assert len(last_json(output)["images"]) == 4


def test_drawn_images_have_names_that_no_other_has():
    names = ["x.bmp", "x.bmp.png", "x.bmp.png.png", "y.jpg", "z.mp4", f"{'long' * 60}.jpg", f"{'long' * 60}.gif"]
    drawn = drawn_names([ImageFile(Path(name), name) for name in names])
    assert len(set(drawn.values())) == len(names)
    assert drawn["y.jpg"] == "drawings/y.jpg"
    assert drawn["x.bmp.png"] == "drawings/x.bmp.png"
    assert max(len(Path(name).name) for name in drawn.values()) < 250


def test_odd_file_names_do_not_stop_a_run(command, detector_folder, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (b"f\xff.jpg", b"l" * 245 + b".jpg", b" outer space .jpg", b"what?.jpg"):
        Path(os.fsdecode(bytes(str(tmp_path / "in"), "utf-8") + b"/" + name)).write_bytes(PHOTOS[0].read_bytes())
    code, output, error = command("detect", "in", "--words", "cat, dog", "--model", detector_folder, "--json")
    assert code == 0, error
    assert "Done: 4 images" in output
    assert len(list((tmp_path / "output" / "detect" / "drawings").iterdir())) == 4


def test_missing_names_of_a_list_are_reported(command, photos, detector_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stdin_of("photos/a.jpg\nnothing.jpg\n"))
    code, output, error = command("detect", "-", "--words", "cat, dog", "--model", detector_folder)
    assert code == 1
    assert "Done: 1 images" in output
    assert [line for line in errors(error) if "nothing.jpg" in line]


def test_given_boxes_are_named(command, photos, detector_folder, tmp_path):
    (tmp_path / "boxes.json").write_text(
        json.dumps({"a.jpg": [[5, 5, 60, 60], [0, 0, 90, 20]], "b.png": [[9, 9, 2, 2]]})
    )
    options = ("--words", "cat, dog", "--model", detector_folder, "--boxes", "boxes.json", "--json")
    code, output, error = command("detect", "photos/a.jpg", "photos/b.png", *options)
    assert code == 1
    assert [line for line in errors(error) if "photos/b.png: boxes, row 0: expected x1 < x2" in line]
    (entry,) = last_json(output)["images"]
    (tmp_path / "boxes.json").write_text(json.dumps({"in/a": [[5, 5, 60, 60]] * 40, "b": []}))
    code, output, error = command("detect", "photos", *options)
    assert code == 0, error
    counts = {entry["file"]: len(entry["detections"]) for entry in last_json(output)["images"]}
    assert counts == {"photos/a.jpg": 0, "photos/b.png": 0, "photos/in/a.jpg": 40, "photos/in/Zürich #1 100%.jpg": 0}
    for boxes, message in (({"a": [[5, 5, 60, 60]]}, "got several: a.jpg, in/a.jpg"), ({"c.jpg": []}, "got none")):
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        code, _, error = command("detect", "photos", *options)
        assert code == 2
        assert message in error
    np.testing.assert_allclose([found["box"] for found in entry["detections"]], [[5, 5, 60, 60], [0, 0, 90, 20]])


KILLED_AFTER = 6
KILLED_RUN = f"""
import os, signal, sys
from regionclip.cli.main import main
from regionclip.journal import Journal

finished, append = [], Journal.append

def append_and_die(journal, predictions):
    append(journal, predictions)
    finished.extend(predictions)
    if len(finished) == {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_and_die
main()
"""
"""The command line, killed in the middle of its images."""


def test_an_interrupted_run_goes_on_and_gives_the_same(command, detector_folder, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(16):
        (folder / f"{i:02}.jpg").write_bytes(PHOTOS[i % 4].read_bytes())
    options = ["--words", "cat, dog", "--model", str(detector_folder), "--output"]
    code, _, error = command("detect", folder, *options, "whole")
    assert code == 0, error
    arguments = [sys.executable, "-c", KILLED_RUN, "detect", str(folder), *options, str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out" / "detections.json").exists()
    code, output, error = command("detect", folder, *options, "out")
    assert code == 0, error
    assert f"{KILLED_AFTER} of them by an interrupted run" in output
    whole, resumed = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("whole", "out"))
    assert [image["file_name"] for image in whole["images"]] == [image["file_name"] for image in resumed["images"]]
    assert len(whole["annotations"]) == len(resumed["annotations"])
    for one, other in zip(whole["annotations"], resumed["annotations"], strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-2)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    assert len(list((tmp_path / "out" / "drawings").iterdir())) == 16
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.fixture
def encoded_at_once(monkeypatch):
    """Return the numbers of images that detectors encode, call by call."""
    counts, image_features = [], CLIPFastRCNN.image_features
    monkeypatch.setattr(
        CLIPFastRCNN, "image_features", lambda self, images: counts.append(len(images)) or image_features(self, images)
    )
    return counts


def assert_same_detections(one, other):
    assert one["file"] == other["file"]
    for expected, actual in zip(one["detections"], other["detections"], strict=True):
        np.testing.assert_allclose(actual["box"], expected["box"], atol=1e-2)
        assert actual["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_images_are_encoded_together(command, detector_folder, tmp_path, encoded_at_once):
    """Those of one size give what each gives alone; what is broken, or given boxes, changes nothing."""
    folder = tmp_path / "many"
    folder.mkdir()
    pixels = np.asarray(Image.open(PHOTOS[0]).resize((128, 96)))
    for number in range(4):
        Image.fromarray(np.roll(pixels, 30 * number, axis=1)).save(folder / f"{number}.png")
    (folder / "0a.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "3a.png").write_bytes(b"no image")
    write_video(folder / "5.mp4", frames=3)
    Image.open(PHOTOS[1]).resize((96, 128)).save(folder / "6.png")
    (tmp_path / "boxes.json").write_text(json.dumps({f"{i}.png": [[5, 5, 90, 60]] for i in (0, "0a", 1, 2, 3, 6)}))
    options = ("--words", "cat, dog", "--model", detector_folder, "--json", "--threshold", 0, "--output")
    for files, more in (([folder], []), (sorted(folder.glob("*.png")), ["--boxes", "boxes.json"])):
        found = {}
        for count in (1, 3):
            encoded_at_once.clear()
            code, output, error = command("detect", *files, *options, f"out{count}", "--batch", count, *more)
            assert code == 1
            assert ["3a.png" in line for line in errors(error)] == [True]
            found[count] = last_json(output)["images"]
            # Of the two that are equal one is encoded.
            assert encoded_at_once == (
                [1] * (len(found[1]) - 1) if count == 1 else [2, *[3] * (len(found[1]) // 3 - 1)]
            )
        assert all(entry["detections"] for entry in found[3])
        for alone, together in zip(found[1][:-3], found[3][:-3], strict=True):  # the last is of another size
            assert_same_detections(alone, together)


def test_what_an_interrupted_run_finished_is_not_encoded_again(
    command, detector_folder, tmp_path, encoded_at_once, monkeypatch
):
    write_video(tmp_path / "v.mp4")
    options = ("detect", "v.mp4", "--words", "cat, dog", "--model", detector_folder, "--json", "--batch", 3, "--output")
    _, output, _ = command(*options, "whole")
    whole = last_json(output)["images"]
    calls, predict = [], RegionCLIP.predict

    def interrupted(self, *arguments, **more):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return predict(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(RegionCLIP, "predict", interrupted)
        assert command(*options, "out")[0]
    encoded_at_once.clear()
    code, output, error = command(*options, "out")
    assert code == 0, error
    assert encoded_at_once == [2, 1]
    resumed = last_json(output)["images"]
    assert len(whole) == len(resumed) == 7
    for one, other in zip(whole, resumed, strict=True):
        assert_same_detections(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jpg", "--words", "cat"], "nothing.jpg: expected images or videos, got no such file"),
        (["empty", "--words", "cat"], "empty: expected images or videos, got a folder without"),
        (["notes.txt", "--words", "cat"], "notes.txt: expected a file ending in"),
        (["a.jpg"], "vocabulary: expected words to look for, got none"),
        (["a.jpg", "--words", " , "], "word 1 of the vocabulary: expected letters"),
        (["a.jpg", "--words", "cat, Cat"], "expected each word once, got 'cat' = 'Cat'"),
        (["a.jpg", "--words", "cat", "--vocabulary", "lvis"], "--words and --vocabulary: expected one of them"),
        (["a.jpg", "--vocabulary", "cats"], "vocabulary: expected a list of words, coco"),
        (["a.jpg", "--words", "cat", "--templates", "no"], "templates: expected regionclip, cora, single"),
        (["a.jpg", "--words", "cat", "--synonyms", "min"], "synonyms: expected max or mean, got 'min'"),
        (["a.jpg", "--words", ""], "word 1 of the vocabulary: expected letters"),
        (["a.jpg", "--words", "cat\udcff"], "word 1 of the vocabulary: expected text"),
        (["a.jpg", "--words", "cat", "--background", "cat, " * 99], "word 100 of the vocabulary: expected letters"),
        (["a.jpg", "--words", "cat", "--top-words", "2"], "words_per_box: expected 0 to 1, the words, got 2"),
        (["a.jpg", "--words", "cat", "--threshold", "nan"], "threshold: expected a number, got nan"),
        (["a.jpg", "--words", "cat", "--templates", "broken.txt"], "broken.txt: expected text in UTF-8"),
        (["a.jpg", "--words", "cat", "--boxes", "broken.npz"], "boxes broken.npz: expected a list of boxes"),
        (
            ["a.jpg", "--words", "cat", "--boxes", "boxes.json"],
            "boxes.json: a.jpg, row 0: expected a box of four",
        ),
        (["a.jpg", "--words", "cat", "--boxes", "no.json"], "boxes no.json: expected a JSON or npz file"),
        (["a.jpg", "--words", "cat", "--set", "INPUT"], "--set INPUT: expected KEY=VALUE"),
        (["a.jpg", "--words", "cat", "--set", "NO.KEY=1"], "expected pairs of a known key"),
        (["a.jpg", "--words", "cat", "--output", "notes.txt"], "output notes.txt: expected a folder to write to"),
        (["a.jpg", "--words", "cat", "--device", "abacus"], "device: expected cpu, cuda or cuda:N, got 'abacus'"),
        (["a.jpg", "--words", "cat", "--topk", "0"], "Invalid value for '--topk'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, command, detector_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("cat")
    (tmp_path / "broken.txt").write_bytes(b"\xff {}")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "boxes.json").write_text('{"a.jpg": ["abcd"]}')
    (tmp_path / "a.jpg").write_bytes(PHOTOS[0].read_bytes())
    before = sorted(tmp_path.iterdir())
    code, _, error = command("detect", *arguments, "--model", detector_folder)
    assert code == 2
    assert message in error, error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_words_are_embedded_into_files(command, detector_folder, tmp_path):
    common = ("--architecture", DATA / "tiny_clip.json", "--weights", detector_folder / "text.safetensors")
    code, output, error = command("concepts", "--words", "cat, dog", *common, "--output", "w.safetensors", "--json")
    assert code == 0, error
    assert last_json(output) == {"output": "w.safetensors", "names": ["cat", "dog"], "shape": [2, 32]}
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    code, _, error = command("concepts", "--vocabulary", "words.txt", *common, "--output", "w.pth")
    assert code == 0, error
    assert (tmp_path / "w.txt").read_text() == "cat\ndog\n"
    rows = torch.load(tmp_path / "w.pth", weights_only=True)
    assert torch.equal(rows, regionclip.Vocabulary.from_file("w.safetensors").embeddings)
    code, _, error = command("concepts", "--words", "cat, dog", "--model", detector_folder, "--output", "same.pth")
    assert code == 0, error
    assert torch.equal(torch.load(tmp_path / "same.pth", weights_only=True), rows)
    (tmp_path / "a.jpg").write_bytes(PHOTOS[0].read_bytes())
    for file in ("w.pth", "w.safetensors"):
        code, output, error = command("detect", "a.jpg", "--vocabulary", file, "--model", detector_folder)
        assert code == 0, error
    for arguments, message in [
        (["--output", "w.csv", "--words", "cat"], "--output w.csv: expected .safetensors or .pth"),
        ([], "--words and --vocabulary: expected one of them, got neither"),
        (["--words", "cat", "--model", detector_folder], "--model, and --weights or --architecture: expected one of"),
        (["--vocabulary", "both.txt", "--output", "both.pth"], "both.pth: expected a row for each class, got 2 rows"),
    ]:
        (tmp_path / "both.txt").write_text("cat | kitten\n")
        code, _, error = command("concepts", *arguments, *common)
        assert code == 2
        assert message in error


def test_published_files_are_listed(command):
    code, output, _ = command("download", "--json")
    assert code == 0
    paths = {file["path"]: file["state"] for file in last_json(output)["files"]}
    assert "regionclip/regionclip_pretrained-cc_rn50.pth" in paths
    code, _, error = command("download", "nothing")
    assert code == 2
    assert "nothing: expected a detector or file of the list" in error


def test_the_other_commands_are_the_tools(command):
    for name, option in (("train", "--resume"), ("eval", "--eval-only"), ("features", "--images-per-shard")):
        code, output, _ = command(name, "--help")
        assert code == 0
        assert option in output
    code, output, _ = command("doctor", "--json")
    assert code == 0
    assert {finding["component"] for finding in last_json(output)["findings"]} >= {"torch", "detectron2"}
    code, output, _ = command("--version")
    assert output.strip() == f"regionclip {regionclip.__version__}"


def test_shells_can_complete_the_command():
    environment = os.environ | {
        "_REGIONCLIP_COMPLETE": "complete_bash",
        "COMP_WORDS": "regionclip det",
        "COMP_CWORD": "1",
    }
    program = "import sys; sys.argv[0] = 'regionclip'; from regionclip.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["detect"]


def test_help_is_fast_and_has_examples():
    code = "import sys; sys.argv = ['regionclip', 'detect', '--help']\nfrom regionclip.cli.main import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'regionclip detect photo.jpg --words "cat, dog, traffic cone"' in done.stdout


def test_images_have_names_that_no_other_has(tmp_path):
    for name in ("x/a.jpg", "y/a.jpg", "y/z/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images([str(tmp_path / "y"), str(tmp_path / "x" / "a.jpg"), str(tmp_path / "y" / "a.jpg")])
    assert [file.name for file in found] == ["y/a.jpg", "y/z/a.jpg", "x/a.jpg"]
    with pytest.raises(UserError, match="images: expected at least one, got none"):
        find_images(["-"], ["", " "])
