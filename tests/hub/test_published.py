"""Every published detector from files of the right names and shapes, served locally: fetched, loaded, used."""

import io
import json
import pickle
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from regionclip.cli.main import main
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture
from regionclip.hub import zoo
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.modeling.build import build_model
from tests.helpers.paths import DATA

PHOTO = sorted((DATA / "four_photos" / "pictures").iterdir())[0]


def contents(model):
    """Return the files of a detector by path: initial values, under the keys that its publishers use."""
    overrides = [*model.overrides, "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "False"]
    cfg = load_config(model.config, overrides)
    state = build_model(cfg).state_dict()
    text = TextEncoderModule(clip_architecture(cfg)).state_dict()
    rpn = {key.replace("offline_", ""): value for key, value in state.items() if key.startswith("offline_")}
    own = {key: value for key, value in state.items() if not (model.rpn_weights and key.startswith("offline_"))}
    backbone = {key: value for key, value in own.items() if key.startswith("backbone.")}
    bare = {key.replace("backbone.", "visual."): value for key, value in backbone.items()}
    bare |= {key.removeprefix("lang_encoder."): value for key, value in text.items()}
    files = {}
    for path in (*model.files, model.text_weights):
        if path.startswith("rpn/"):
            files[path] = as_pickle(rpn) if path.endswith(".pkl") else as_checkpoint(rpn)
        elif path.startswith("clip/Tiny"):
            parts = {True: "_image_encoder.module.", False: "_text_encoder.module."}
            files[path] = as_checkpoint({parts[key.startswith("visual.")] + key: part for key, part in bare.items()})
        elif path.startswith("clip/"):
            files[path.replace(".pt", ".safetensors")] = save({key: part.contiguous() for key, part in bare.items()})
        elif path:
            files[path] = as_checkpoint(own | text)
    return files


def as_checkpoint(state):
    buffer = io.BytesIO()
    torch.save({"model": dict(state)}, buffer)
    return buffer.getvalue()


def as_pickle(state):
    return pickle.dumps({"model": {key: value.numpy() for key, value in state.items()}, "__author__": "Detectron2"})


@pytest.fixture
def command(monkeypatch, capfd, checkpoints):
    """Run `regionclip` in an empty folder and return (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["regionclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capfd.readouterr()

    return call


def serve(server, model, monkeypatch):
    """Serve the files of a detector; other files of the list are nowhere."""
    files = contents(model)
    for path, file in zoo.FILES.items():
        served = replace(file, sources=(f"{server.address}/{path}",), md5_prefix="")
        monkeypatch.setitem(zoo.FILES, path, served)
    server.files = {f"/{path}": content for path, content in files.items()}
    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_published_detector_is_fetched_loaded_and_used(name, servers, command, checkpoints, monkeypatch):
    server = servers()
    files = serve(server, zoo.MODELS[name], monkeypatch)
    shutil.copy(PHOTO, "photo.jpg")
    small = ("--set", "INPUT.MIN_SIZE_TEST=96", "--set", "TEST.DETECTIONS_PER_IMAGE=5")
    few = () if name.startswith("cora") else ("--set", "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST=20")
    given = ("photo.jpg", "--words", "cat", "--threshold", "0", "--model", name, "--device", "cpu", *small, *few)
    code, _, error = command("detect", *given)
    assert code == 2
    assert "add --yes" in error
    assert not any(path.is_file() for path in checkpoints.rglob("*"))
    code, output, error = command("detect", *given, "--yes", "--verbose", "--json")
    assert code == 0, error
    assert {str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*.*")} == {*files, "weights.lock"}
    assert "matched" in output
    assert len(json.loads(output.splitlines()[-1])["images"][0]["detections"]) > 0
    requests = len(server.requests)
    code, output, error = command("detect", *given, "--output", "again")
    assert code == 0, error
    assert "matched" not in output  # the table is for --verbose
    assert f"Detector {name}" in output
    assert len(server.requests) == requests
