"""A detector as one folder that can be passed on."""

import json
import shutil
import sys

import numpy as np
import pytest

from regionclip import RegionCLIP
from regionclip.cli.main import main
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.text_encoder import TextEncoder
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture
from regionclip.data.class_lists import parse_names
from regionclip.engine.checkpoint.reading import backbone_hash
from regionclip.hub.packing import pack_detector
from regionclip.hub.pretrained import Pretrained, load_pretrained
from regionclip.modeling.build import build_model
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.lp_ovod import tiny as lp_ovod

PHOTO = sorted((DATA / "four_photos" / "images").iterdir())[0]
FILES = {
    "config.yaml",
    "rpn.yaml",
    "tiny_clip.json",
    "model.safetensors",
    "text.safetensors",
    "vocabulary.safetensors",
}


@pytest.fixture
def pack(monkeypatch, capfd, tmp_path, detector_folder):
    """Pack the tiny detector and return (exit code, standard output, standard error)."""

    def call(*arguments):
        command = ["regionclip", "pack", str(detector_folder), "--output", str(tmp_path / "packed"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capfd.readouterr()

    return call


def find(folder, words=("cat", "dog", "car")):
    detector = RegionCLIP.from_pretrained(folder, device="cpu")
    detector.set_image(PHOTO)
    detector.set_vocabulary(list(words), background=None)
    return detector.predict(threshold=0.0, topk=20)


def test_a_packed_detector_finds_the_same_wherever_it_is_moved(pack, detector_folder, tmp_path):
    (tmp_path / "words.txt").write_text("cat | kitten\ntraffic cone\n")
    code, output, error = pack("--vocabulary", str(tmp_path / "words.txt"), "--json")
    assert code == 0, error
    sizes = json.loads(output.splitlines()[-1])["bytes"]
    assert set(sizes) == FILES == {path.name for path in (tmp_path / "packed").iterdir()}
    moved = shutil.move(tmp_path / "packed", tmp_path / "elsewhere")
    assert not [line for name in ("config.yaml", "rpn.yaml") for line in lines_with(moved / name, str(DATA))]
    expected, found = find(detector_folder), find(moved)
    assert len(found) == len(expected) > 5
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert RegionCLIP.from_pretrained(moved, device="cpu").vocabulary.names == ("cat", "traffic cone")


def lines_with(path, text):
    return [line for line in path.read_text().splitlines() if text in line]


def test_half_precision_halves_the_files_and_keeps_the_detections(pack, detector_folder, tmp_path):
    _, output, _ = pack("--json")
    whole = json.loads(output.splitlines()[-1])["bytes"]
    code, output, error = pack("--half", "--vocabulary", "coco17", "--json")
    assert code == 0, error
    half = json.loads(output.splitlines()[-1])["bytes"]
    for name in ("model.safetensors", "text.safetensors"):
        assert half[name] == pytest.approx(whole[name] / 2, rel=0.05)
    expected, found = find(detector_folder), find(tmp_path / "packed")
    best = expected.scores.argmax()
    nearest = np.abs(found.boxes - expected.boxes[best]).max(axis=1).argmin()
    np.testing.assert_allclose(found.boxes[nearest], expected.boxes[best], atol=1)
    assert found.scores[nearest] == pytest.approx(expected.scores[best], abs=0.02)
    # The words belong to the rounded text encoder, so that further ones can be set beside them.
    detector = RegionCLIP.from_pretrained(tmp_path / "packed", device="cpu")
    assert len(detector.vocabulary) == 17
    assert len(detector.set_vocabulary(["cat"])) == 1
    assert len(detector.background) == 16


def test_what_cannot_be_packed_is_said(pack, detector_folder, tmp_path, monkeypatch, capfd):
    code, _, error = pack("--vocabulary", "nowhere.txt")
    assert code == 2
    assert "nowhere.txt" in error
    assert not (tmp_path / "packed").exists()
    bare = tmp_path / "bare"
    shutil.copytree(detector_folder, bare, ignore=shutil.ignore_patterns("text.safetensors"))
    monkeypatch.setattr(sys, "argv", ["regionclip", "pack", str(bare), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "a text encoder" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_words_of_another_detector_stay_in_a_folder(detector_folder, tmp_path):
    detector = load_pretrained(str(detector_folder))
    pack_detector(detector, tmp_path, ["cat", "dog"])
    assert (tmp_path / "vocabulary.safetensors").is_file()
    pack_detector(detector, tmp_path)
    assert not (tmp_path / "vocabulary.safetensors").exists()


def calibration(folder, **values):
    """Write the calibration of an evaluation, and return its path."""
    path = folder / "calibration.json"
    path.write_text(json.dumps({"detections": 9, "expected_calibration_error": 7.0, **values}))
    return path


@pytest.mark.parametrize(("fusion", "bias"), [("upstream", 0.0), ("sigmoid", -0.5)])
def test_a_calibration_changes_scores_and_threshold_but_no_order(fusion, bias, pack, tmp_path, detector_folder):
    score_fusion = ("--set", f"MODEL.CLIP.RPN_SCORE_FUSION={fusion}", "--set", "MODEL.CLIP.VIS=False")
    assert pack(*score_fusion)[0] == 0
    before = find(tmp_path / "packed")
    threshold = float(before.scores[4:6].mean())  # between two scores
    fitted = {"temperature": 1.0, "best_temperature": 2.5, "threshold_of_highest_f1": threshold}
    file = calibration(tmp_path, **fitted, **({"bias": 0.0, "best_bias": bias} if bias else {}))  # older files lack it
    code, _, error = pack(*score_fusion, "--calibration", str(file))
    assert code == 0, error
    after = find(tmp_path / "packed")
    assert np.array_equal(after.boxes, before.boxes) and len(after) > 5
    log_odds = np.log(before.scores) - np.log1p(-before.scores)
    np.testing.assert_allclose(after.scores, 1 / (1 + np.exp(-log_odds / 2.5 - bias)), rtol=1e-4)
    detector = RegionCLIP.from_pretrained(tmp_path / "packed", device="cpu")
    detector.set_image(PHOTO)
    detector.set_vocabulary(["cat", "dog", "car"], background=None)
    assert np.array_equal(detector.predict().boxes, before.boxes[before.scores > threshold])


def test_no_calibration_of_probabilities_becomes_a_threshold_of_fused_scores(pack, tmp_path):
    file = calibration(tmp_path, temperature=1.0, best_temperature=2.5, threshold_of_highest_f1=0.4)
    code, _, error = pack("--set", "MODEL.CLIP.VIS=True", "--calibration", str(file))
    assert code == 2
    assert "MODEL.CLIP.VIS=False" in error
    assert not (tmp_path / "packed" / "config.yaml").exists()


def test_a_calibration_of_other_weights_is_refused(pack, tmp_path, detector_folder):
    fitted = {"temperature": 1.0, "best_temperature": 2.5, "threshold_of_highest_f1": 0.4}
    (own,) = detector_folder.glob("model*")
    for weights, expected in ((backbone_hash(str(own)), 0), ("0123456789abcdef", 2)):
        file = calibration(tmp_path, **fitted, weights=weights)
        code, _, error = pack("--set", "MODEL.CLIP.VIS=False", "--calibration", str(file))
        assert code == expected, error
    assert f"expected a calibration of weights {backbone_hash(str(own))}, got one of 0123456789abcdef" in error


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "no such file"),
        ({}, "no temperature, best_temperature"),
        ({"temperature": 1.0, "threshold_of_highest_f1": 0.5}, "no best_temperature"),
        ({"temperature": 1.0, "best_temperature": "hot", "threshold_of_highest_f1": 0.5}, "no best_temperature"),
        ({"temperature": 1, "best_temperature": 2, "threshold_of_highest_f1": 0.5, "best_bias": "low"}, "no best_bias"),
    ],
)
def test_what_is_no_calibration_is_said_before_anything_is_written(values, said, pack, tmp_path):
    file = tmp_path / "calibration.json" if values is None else calibration(tmp_path, **values)
    code, _, error = pack("--calibration", str(file))
    assert code == 2
    assert "calibration.json" in error and said in error and "regionclip eval" in error
    assert not (tmp_path / "packed").exists()


def test_files_of_class_names_come_along(tmp_path, monkeypatch, embedding_file):
    """A packed LP-OVOD knows its base and novel classes in any place."""
    listed = {"BASE_CLASSES": parse_names("coco48"), "NOVEL_CLASSES": parse_names("coco17")}
    for key, names in listed.items():
        (tmp_path / f"{key}.txt").write_text("\n".join(names))
    files = {f"MODEL.LP_OVOD.{key}": str(tmp_path / f"{key}.txt") for key in listed}
    options = lp_ovod.OVERRIDES | {lp_ovod.EMBEDDINGS: embedding_file("packed", 65, 32, parse_names("coco65"))}
    cfg = load_config(lp_ovod.CONFIG, flat(options | files))
    embedder = NameEmbedder(TextEncoder(clip_architecture(cfg)), "tiny", "cpu")
    pack_detector(Pretrained(build_model(cfg), cfg, lambda: embedder), tmp_path / "packed")
    for key in listed:
        (tmp_path / f"{key}.txt").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    packed = load_config(str(tmp_path / "packed" / "config.yaml"))
    assert {key: parse_names(packed.MODEL.LP_OVOD[key]) for key in listed} == listed
