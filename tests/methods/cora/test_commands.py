"""Commands that know no method, with CORA: region features, packing, detection of a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regionclip import RegionCLIP
from regionclip.clip.architectures import get_architecture
from regionclip.config.loading import load_config
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.cora import fill
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.cora.tiny import CONFIG, OVERRIDES

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
WORDS = "cat,dog,traffic cone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with config, weights and text encoder of a tiny localizer."""
    folder = tmp_path_factory.mktemp("cora_detector")
    cfg = load_config(CONFIG, flat(OVERRIDES | {"MODEL.CLIP.TEXT_EMB_PATH": ""}))
    text = TextEncoderModule(get_architecture(OVERRIDES["MODEL.CLIP.ARCHITECTURE"]))
    for module, name in ((fill(build_model(cfg)), "model"), (fill_deterministic(text) or text, "text")):
        save_file({key: part.contiguous() for key, part in module.state_dict().items()}, folder / f"{name}.safetensors")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def images(tmp_path):
    """Return a folder of two photos."""
    (tmp_path / "in").mkdir()
    for name, photo in zip(("a.jpg", "b.jpg"), PHOTOS, strict=False):
        shutil.copy(photo, tmp_path / "in" / name)
    return tmp_path / "in"


@pytest.fixture
def features(command, folder, images, tmp_path):
    """Run `regionclip features` on the photos and return (exit code, what it printed, features by file name)."""

    def call(*arguments, **overrides):
        options = {"MODEL.WEIGHTS": folder / "model.safetensors", "INPUT_DIR": images, "OUTPUT_DIR": tmp_path / "out"}
        options |= {key.replace("__", "."): value for key, value in overrides.items()}
        given = ("--config-file", folder / "config.yaml", "--num-gpus", "0")
        code, out, error = command("features", *given, *arguments, *map(str, flat(options)))
        files = {path.stem: torch.load(path, weights_only=True) for path in (tmp_path / "out").glob("*.pth")}
        return code, out + error, files

    return call


def test_features_of_given_boxes_are_those_of_the_predictor(features, folder, images, tmp_path):
    boxes = {"a.jpg": [[10, 10, 90, 60], [0, 0, 150, 90]], "b.jpg": [[5.5, 5, 50, 50]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    code, output, files = features("--regions", tmp_path / "boxes.json")
    assert code == 0, output
    detector = RegionCLIP.from_pretrained(folder, device="cpu")
    detector.set_vocabulary(["cat"])
    for name, rows in boxes.items():
        found = files[name.removesuffix(".jpg")]
        torch.testing.assert_close(found["boxes"], torch.tensor(rows, dtype=torch.float32))
        detector.set_image(images / name)
        expected = detector.predict(np.array(rows), embeddings=True).embeddings
        np.testing.assert_allclose(found["feats"], expected, atol=1e-4, rtol=1e-3)


def test_features_of_a_grid_and_of_detections(features, embedding_file):
    code, output, files = features("--regions", "GRID")
    assert code == 0, output
    assert {frozenset(content) for content in files.values()} == {frozenset({"boxes", "feats"})}
    embeddings = embedding_file("cora_features", 48, 32)
    code, output, _ = features(MODEL__CLIP__TEXT_EMB_PATH=embeddings, OUTPUT_DIR="detections")
    assert code == 0, output
    for path in Path("detections").glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert set(content) == {"boxes", "classes", "probs", "feats"}
        assert content["probs"].shape == (len(content["boxes"]), 49)
        assert len(content["boxes"])


def test_features_of_own_proposals_need_class_names(features):
    code, output, files = features()
    assert code == 2
    assert "MODEL.CLIP.TEXT_EMB_PATH: expected class embeddings, which the proposals depend on, got none" in output
    assert files == {}


def test_a_packed_localizer_detects_the_same(command, folder, images, tmp_path):
    code, _, error = command("pack", folder, "--output", tmp_path / "packed", "--vocabulary", "coco17")
    assert code == 0, error
    results = []
    for source in (folder, tmp_path / "packed"):
        output = tmp_path / f"found_{source.name}"
        given = (
            "--model",
            source,
            "--words",
            WORDS,
            "--background",
            "none",
            "--threshold",
            "0",
            "--report",
            "--output",
            output,
        )
        code, _, error = command("detect", images, *given)
        assert code == 0, error
        assert (output / "report.html").is_file()
        results.append(json.loads((output / "detections.json").read_text()))
    assert results[0] == results[1]
    assert len(results[0]["annotations"]) > 10
