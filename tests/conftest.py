"""Shared fixtures: goldens, deterministic detectors, and a tiny detector on disk."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import regionclip.data.datasets.builtin  # noqa: F401 - registers datasets
from regionclip.cli.main import main
from regionclip.clip.architectures import get_architecture
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import DEVICE, LVIS_CUSTOM, TINY, flat
from tests.helpers.paths import DATA, GOLDENS, REPOSITORY
from tests.helpers.scripts import recorded_calls

torch.backends.cudnn.allow_tf32 = False  # float32 has the same tolerances everywhere


@pytest.fixture(scope="session")
def golden_inputs():
    """Photos of the goldens by name of their entries; all three where the complete file is at hand."""
    complete = Path(os.environ.get("REGIONCLIP_GOLDENS", GOLDENS)) / "inputs.npz"
    return np.load(complete if complete.is_file() else GOLDENS / "inputs_460229.npz")


@pytest.fixture(scope="session")
def embedding_file(tmp_path_factory):
    """Write deterministic class embeddings, with class names if given, and return their path."""
    folder = tmp_path_factory.mktemp("embeddings")

    def write(name, rows, dim, names=()):
        path = folder / f"{name}_{rows}x{dim}.{'safetensors' if names else 'pth'}"
        table = deterministic_text_embeddings(name, rows, dim)
        if names:
            Vocabulary(tuple(names), table, torch.arange(rows)).save(path)
        elif not path.exists():
            torch.save(table, path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def golden_detector(embedding_file):
    """Build the detector that a golden file was computed with."""

    def build(case, *overrides):
        golden = np.load(GOLDENS / f"{case}.npz")
        meta = json.loads(str(golden["meta"]))
        files = {f"EMB/{n}_{r}x{d}.pth": embedding_file(n, r, d) for n, (r, d) in meta["embeddings"].items()}
        published = [files.get(option, option) for option in meta["opts"] if ": [" not in option]
        cfg = load_config(f"configs/{meta['config']}", [*published, "MODEL.DEVICE", DEVICE, *overrides])
        model = build_model(cfg).eval()
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return golden, model

    return build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, embedding_file):
    """Overrides of a tiny LVIS detector with its weights and embeddings on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    overrides = TINY | {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("lvis_1203", 1203, 32)}
    config = LVIS_CUSTOM
    model = build_model(load_config(config, flat(overrides)))
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    weights = folder / "tiny.pth"
    torch.save({"model": model.state_dict()}, weights)
    return {"config": config, "overrides": overrides | {"MODEL.WEIGHTS": str(weights)}}


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory):
    """Return a folder as a detector is shipped in: config, weights, text encoder."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = load_config(LVIS_CUSTOM, flat(TINY))
    model, text_encoder = build_model(cfg), TextEncoderModule(get_architecture(str(DATA / "tiny_clip.json")))
    for module, name in ((model, "model"), (text_encoder, "text")):
        fill_deterministic(module, skip=["cls_bg_score.weight"])
        state = {key: value.contiguous() for key, value in module.state_dict().items() if "cls_score" not in key}
        save_file(state, folder / f"{name}.safetensors")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run `regionclip` in `tmp_path` and return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["regionclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def recorded(tmp_path):
    """Run a script, and return the finished process and the command lines that it calls Python with."""
    return lambda script, *arguments, **environment: recorded_calls(tmp_path, script, arguments, environment)


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Run a script of `tools/` in this process, which is faster, and return (exit code, what it printed)."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(REPOSITORY / "tools" / tool), run_name="__main__")
        torch.set_num_threads(threads)
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out + captured.err

    return call


@pytest.fixture
def run(monkeypatch, run_tool, tmp_path):
    """Run a tool in `tmp_path` and return (exit code, what it printed)."""
    monkeypatch.chdir(tmp_path)
    return run_tool


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep the tests' embeddings out of the user's cache."""
    os.environ["REGIONCLIP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
