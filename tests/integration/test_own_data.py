"""`train --data` and `eval --data` as a user gives them: from a dataset to a detector that detects."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regionclip import RegionCLIP
from regionclip.config.loading import load_config
from regionclip.data.class_lists import parse_names
from regionclip.engine.checkpoint.reading import backbone_hash
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.own_datasets import NAMES, write_coco, write_yolo
from tests.helpers.paths import REPOSITORY

FAST = ("--set", "INPUT.MIN_SIZE_TRAIN=(64,)", "--set", "INPUT.MIN_SIZE_TEST=64", "--set", "DATALOADER.NUM_WORKERS=0")


def metrics_of(folder):
    return json.loads((folder / "inference" / "metrics.json").read_text())


@pytest.fixture
def data(tmp_path):
    return write_coco(tmp_path / "my")


def test_a_dataset_becomes_a_detector_with_a_page(command, data, detector_folder, tmp_path):
    options = ("--data", data, "--novel", "wood", "--model", detector_folder, "--epochs", 3, "--batch", 2, *FAST)
    code, output, error = command("train", *options, "--output", "mine", "--json")
    assert code == 0, output + error
    assert "COCO dataset" in output and "3 classes (2 base, 1 novel)" in output
    trained, tested = (int(re.search(rf"to {name} on: (\d+) images", output)[1]) for name in ("train", "evaluate"))
    assert trained + tested == 8 and tested >= 1
    last = json.loads(output.splitlines()[-1])
    assert last["detector"] == "mine/detector" and "1 novel, 2 base" in last["protocol"]
    mine = tmp_path / "mine"
    assert last["metrics"] == metrics_of(mine / "evaluation")["metrics"]
    assert {"AP50-novel", "AP50-base"} <= last["metrics"]["bbox"].keys()
    page = (mine / "evaluation" / "inference" / "report.html").read_text()
    assert "3 classes (1 novel, 2 base)" in page and "<h2>Worst mistakes</h2>" in page
    log = [json.loads(line) for line in (mine / "metrics.json").read_text().splitlines()]
    assert log[-1]["iteration"] == -(-3 * trained // 2) - 1  # 3 epochs in batches of 2
    detector = RegionCLIP.from_pretrained(mine / "detector", device="cpu")
    assert list(detector.vocabulary.names) == [name.split(" | ")[0] for name in NAMES]
    assert str(tmp_path) not in (mine / "detector" / "config.yaml").read_text()
    # The packed detector is the one that was evaluated.
    code, output, error = command(
        "eval", "--data", data, "--novel", "wood", "--model", mine / "detector", "--output", "again", "--json", *FAST
    )
    assert code == 0, output + error
    assert metrics_of(tmp_path / "again")["metrics"] == last["metrics"]
    calibration = json.loads((mine / "evaluation" / "inference" / "calibration.json").read_text())
    (packed,) = (mine / "detector").glob("model.*")
    assert calibration["weights"] == backbone_hash(str(packed)) != ""
    code, output, error = command("detect", tmp_path / "my" / "images", "--model", "mine/detector", "--output", "found")
    assert code == 0, output + error
    code, output, error = command("train", *options, "--output", "mine")
    assert code == 2 and "expected a folder without a training, got one with checkpoints" in error


def test_weights_change_and_the_rpn_and_text_encoder_do_not(command, data, detector_folder, tmp_path):
    code, output, error = command(
        "train", "--data", data, "--model", detector_folder, "--epochs", 1, "--batch", 6, "--output", "mine", *FAST
    )
    assert code == 0, output + error
    folders = detector_folder, tmp_path / "mine" / "detector"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    changed = {key.split(".")[0] for key in after if key in before and not after[key].equal(before[key])}
    assert "backbone" in changed and not changed & {"offline_backbone", "offline_proposal_generator"}
    text = (load_file(folder / "text.safetensors") for folder in folders)
    before, after = ({key.removeprefix("lang_encoder."): value for key, value in state.items()} for state in text)
    assert all(after[key].equal(before[key]) for key in after)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_and_gives_the_same(data, detector_folder, tmp_path):
    """Killed after its first checkpoint, and resumed: the same detector and metrics as an uninterrupted one."""
    options = ["--data", str(data), "--model", str(detector_folder), "--epochs", "10", "--batch", "2", *FAST]
    line = [sys.executable, "-m", "regionclip", "train", *options, "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    subprocess.run([*line, "whole"], check=True, **run)
    killed = subprocess.Popen([*line, "parts"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=-3)
    while not list((tmp_path / "parts").glob("model_0*.pth")) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "parts" / "detector").exists()
    done = subprocess.run([*line, "parts", "--resume"], check=False, **run)
    assert done.returncode == 0, done.stdout + done.stderr
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert metrics_of(whole / "evaluation") == metrics_of(parts / "evaluation")
    states = [load_file(folder / "detector" / "model.safetensors") for folder in (whole, parts)]
    assert states[0].keys() == states[1].keys() and all(states[0][key].equal(states[1][key]) for key in states[0])


def test_a_training_is_not_resumed_with_other_data(command, data, detector_folder, tmp_path):
    options = ("--data", data, "--model", detector_folder, "--epochs", 1, "--batch", 6, "--output", "mine", *FAST)
    assert command("train", *options)[0] == 0
    content = json.loads(data.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    data.write_text(json.dumps(content))
    code, _, error = command("train", *options, "--resume")
    assert code == 2 and "--resume: expected the data that the training began with" in error


def test_a_yolo_dataset_is_evaluated_on_the_split_that_is_asked_for(command, detector_folder, tmp_path):
    options = ("--data", write_yolo(tmp_path / "yolo"), "--model", detector_folder, *FAST)
    code, output, error = command("eval", *options, "--output", "val")
    assert code == 0, output + error
    assert metrics_of(tmp_path / "val")["images"] == 8 and "YOLO dataset" in output
    code, _, error = command("eval", *options, "--split", "test")
    assert code == 2 and "--split: expected one of train, val, all, got test" in error


def test_unreadable_images_are_named_and_the_rest_is_evaluated(command, data, detector_folder, tmp_path):
    (tmp_path / "my" / "images" / "3.png").write_bytes(b"no image")
    code, output, error = command(
        "eval", "--data", data, "--split", "all", "--model", detector_folder, "--output", "out", *FAST
    )
    assert code == 1, output + error
    measured = metrics_of(tmp_path / "out")
    assert measured["images"] == 7 and "3.png" in measured["failures"][0]
    assert (tmp_path / "out" / "inference" / "report.html").is_file()


def test_help_tells_both_forms(command):
    for name in ("train", "eval"):
        code, output, _ = command(name, "--data", "--help")
        assert code == 0 and "--novel" in output and "--config-file" not in output
        code, output, _ = command(name, "--help")
        assert code == 0 and "--config-file" in output and "--data" in output


def test_what_only_regionclip_can_is_refused_for_others(command, data, tmp_path, monkeypatch):
    config = REPOSITORY / "configs" / "cora" / "coco_rn50.yaml"
    (tmp_path / "weights.pth").write_bytes(b"")
    code, _, error = command("train", "--data", data, "--model", "weights.pth", "--config", config, "--output", "mine")
    assert code == 2 and "--model: expected a detector of RegionCLIP" in error and "CORA" in error
    assert not (tmp_path / "mine").exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    code, _, error = command("train", "--data", data)
    assert code == 2 and "--data: expected a command of one process" in error


@pytest.mark.parametrize(
    ("name", "refusal"),
    [("cora", ""), ("lp_ovod", "expected names of BASE_CLASSES and NOVEL_CLASSES, got wood. Fix: add them")],
)
def test_detectors_of_other_methods_are_evaluated_where_they_know_the_names(
    name, refusal, command, data, embedding_file, detector_folder, tmp_path
):
    case = import_module(f"tests.methods.{name}.tiny")
    known = parse_names(getattr(case, "NAMES", ""))
    embeddings = embedding_file("conformance", case.CLASSES, int(case.OVERRIDES["MODEL.CLIP.TEXT_EMB_DIM"]), known)
    cfg = load_config(case.CONFIG, flat(case.OVERRIDES | {case.EMBEDDINGS: embeddings}))
    model = build_model(cfg)
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    given = ("--data", data, "--model", "weights.pth", "--config", "config.yaml", "--split", "all", "--output", "out")
    code, output, error = command("eval", *given, "--text-weights", detector_folder / "text.safetensors")
    if refusal:
        assert code == 2 and refusal in error
        return
    assert code == 0, output + error
    assert metrics_of(tmp_path / "out")["images"] == 8


def quick_start():
    """Return the lines of README's quick start with own data."""
    text = (REPOSITORY / "README.md").read_text().replace("\\\n", " ")
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "train --data" in block)
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("regionclip")]


@pytest.mark.parametrize("epochs", [(), pytest.param(None, marks=pytest.mark.slow)], ids=["two steps", "as written"])
def test_the_quick_start_of_the_readme_runs(command, tmp_path, epochs):
    """As written in minutes; else only training, in two steps, and detection."""
    (tmp_path / "datasets").symlink_to(REPOSITORY / "datasets")
    lines = quick_start()
    assert [line[1] for line in lines] == ["eval", "train", "eval", "detect"]
    for line in lines if epochs is None else lines[1::2]:
        short = ["--epochs", "0.5"] if line[1] == "train" and epochs is not None else []
        code, output, error = command(*line[1:], *short)
        assert code == 0, output + error
    for folder in sorted(Path("output").rglob("inference")):
        measured = metrics_of(folder.parent)["metrics"].get("bbox", {})
        assert {"AP50-novel", "AP50-base"} <= measured.keys(), folder
    if epochs is None:
        page = Path("output/mine/evaluation/inference/report.html").read_text()
        assert page.count("<svg") == 5 and "<h2>Training</h2>" in page
