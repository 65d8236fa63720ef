"""The published tool that saves region embeddings, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from regionclip.config import load_config
from regionclip.engine.features.formats import output_files
from regionclip.modeling import build_model
from regionclip.testing import fill_deterministic
from tests.conftest import DATA, GOLDENS, REPOSITORY, flat
from tests.test_goldens import assert_agrees

CONFIG = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_zsinf.yaml"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of six pictures, two of which share their name up to the first dot."""
    photos = sorted((DATA / "four_photos" / "pictures").iterdir())
    (tmp_path / "in").mkdir()
    for i, name in enumerate(["a.jpg", "b.jpg", "c.x.jpg", "c.y.jpg", "d.jpg", "e.jpg"]):
        (tmp_path / "in" / name).write_bytes(photos[i % 4].read_bytes())
    return tmp_path / "in"


@pytest.fixture
def command(folder, tiny, tmp_path):
    """Return the command line of the tool with the tiny detector."""

    def make(*arguments, **overrides):
        folders = {"INPUT_DIR": str(folder), "OUTPUT_DIR": str(tmp_path / "out")}
        options = tiny["overrides"] | folders | {key.replace("__", "."): str(v) for key, v in overrides.items()}
        tool = [sys.executable, "tools/extract_region_features.py", "--config-file", CONFIG, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return {"args": [*tool, *flat(options)], "cwd": REPOSITORY, "env": environment}

    return make


def run(command):
    done = subprocess.run(**command, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def load(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))}


NAMES = ["a.pth", "b.pth", "c.x.jpg.pth", "c.y.jpg.pth", "d.pth", "e.pth"]


def test_detections_and_proposals_have_the_published_keys(command, tmp_path):
    code, output = run(command())
    assert code == 0, output
    assert f"Done: 6 images written, 0 there before, 0 failed; features in {tmp_path}/out" in output
    files = load(tmp_path / "out")
    assert list(files) == NAMES
    for features in files.values():
        count = len(features["boxes"])
        assert count
        assert {key: (tuple(value.shape), value.dtype) for key, value in features.items()} == {
            "boxes": ((count, 4), torch.float32),
            "classes": ((count,), torch.int64),
            "probs": ((count, 1204), torch.float32),
            "feats": ((count, 32), torch.float32),
        }
        torch.testing.assert_close(features["probs"].sum(dim=1), torch.ones(count))
    code, output = run(command(MODEL__CLIP__TEXT_EMB_PATH="", OUTPUT_DIR=tmp_path / "proposals"))
    assert code == 0, output
    proposals = load(tmp_path / "proposals")
    assert list(proposals) == NAMES
    assert all(set(features) == {"boxes", "feats"} for features in proposals.values())
    assert all(len(features["boxes"]) == len(features["feats"]) > 0 for features in proposals.values())


def test_two_processes_write_what_one_writes(command, tmp_path):
    code, output = run(command())
    assert code == 0, output
    code, output = run(command("--num-gpus", "2", "--dist-url", "auto", OUTPUT_DIR=tmp_path / "two"))
    assert code == 0, output
    assert output.count("Done: 6 images written") == 1
    one, two = load(tmp_path / "out"), load(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name][key], two[name][key]) for name in one for key in one[name])


def test_a_killed_run_goes_on_and_redoes_torn_files(command, tmp_path):
    code, output = run(command(OUTPUT_DIR=tmp_path / "whole"))
    assert code == 0, output
    with subprocess.Popen(**command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("*.pth")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = sorted((tmp_path / "out").glob("*.pth"))
    assert done
    done[0].write_bytes(done[0].read_bytes()[:500])
    code, output = run(command())
    assert code == 0, output
    assert f"{len(done) - 1} there before" in output
    whole, resumed = load(tmp_path / "whole"), load(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name][key], resumed[name][key]) for name in whole for key in whole[name])


def test_features_of_other_weights_are_not_mixed(command, tmp_path):
    assert run(command())[0] == 0
    code, output = run(command(TEST__DETECTIONS_PER_IMAGE=7))
    assert code == 2
    assert f"error: OUTPUT_DIR {tmp_path}/out: expected no features of another config or other weights" in output


def test_unreadable_pictures_are_reported_and_the_rest_is_done(command, folder, tmp_path):
    (folder / "b.jpg").write_bytes(b"no picture")
    code, output = run(command())
    assert code == 1
    assert "Skipped image" in output
    assert "5 images written, 0 there before, 1 failed" in output
    assert "b.pth" not in load(tmp_path / "out")


GROUND_TRUTH = {"MODEL__CLIP__CROP_REGION_TYPE": "GT", "MODEL__CLIP__MULTIPLY_RPN_SCORE": False}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"INPUT_DIR": "/nowhere"}, "INPUT_DIR /nowhere: expected a folder of images"),
        (
            GROUND_TRUTH,
            "MODEL.CLIP.CROP_REGION_TYPE: expected RPN to extract region features",
        ),
        ({"MODEL__WEIGHTS": "missing.pth"}, "MODEL.WEIGHTS: expected a file"),
    ],
)
def test_bad_input_is_one_line(overrides, message, command, tmp_path):
    code, output = run(command(**overrides))
    assert code == 2
    assert [line for line in output.splitlines() if line.startswith(f"error: {message}")], output
    assert not (tmp_path / "out").exists()


def test_names_never_collide(tmp_path):
    names = ("a.1.jpg", "a.2.jpg", "b.jpg", ".hidden.jpg", "b.c.png", "in/b.jpg", "in/c.jpg", "d.jpg", "in/.x")
    found = [path.relative_to(tmp_path).as_posix() for path in output_files(names, tmp_path).values()]
    assert found == [
        *("a.1.jpg.pth", "a.2.jpg.pth", "b.jpg.pth", ".hidden.jpg.pth", "b.c.png.pth"),
        *("in/b.pth", "in/c.pth", "d.pth", "in/.x.pth"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no_emb", "with_emb"])
def test_region_features_agree_with_the_published(case, embedding_file, golden_inputs, tmp_path):
    golden = np.load(GOLDENS / "e_region_features.npz")
    meta = json.loads(str(golden["meta"]))
    options = [option for option in meta["opts"] if ": [" not in option]
    lvis = embedding_file("lvis_1203", 1203, 1024)
    limits = {"no_emb": ["MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", "100"]}
    limits["with_emb"] = ["MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", "300", "TEST.DETECTIONS_PER_IMAGE", "100"]
    limits["with_emb"] += ["MODEL.CLIP.TEXT_EMB_PATH", lvis]
    overrides = [*options, *limits[case], "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "320"]
    model = build_model(load_config(f"configs/{meta['config']}", overrides))
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    pixels = golden_inputs["460229/image"].transpose(1, 2, 0)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "460229.png")
    folders = ["INPUT_DIR", tmp_path / "in", "OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "weights.pth"]
    tool = [sys.executable, "tools/extract_region_features.py", "--config-file", f"configs/{meta['config']}"]
    code, output = run({"args": [*map(str, [*tool, *overrides, *folders])], "cwd": REPOSITORY})
    assert code == 0, output
    features = torch.load(tmp_path / "out" / "460229.pth", weights_only=True)
    height, width = golden_inputs["460229/orig_hw"].tolist()
    scale = np.array([width / pixels.shape[1], height / pixels.shape[0]] * 2, np.float32)
    prefix = f"{case}/460229/"
    computed = {f"{prefix}boxes": features["boxes"].numpy() * scale, f"{prefix}feats": features["feats"].numpy()}
    if case == "with_emb":
        indices = torch.from_numpy(golden[f"{prefix}probs_top20_idx"])
        probs, classes = features["probs"], features["classes"]
        computed |= {
            f"{prefix}classes": classes.numpy(),
            f"{prefix}probs_of_class": probs.gather(1, classes[:, None])[:, 0].numpy(),
            f"{prefix}probs_shape": np.array(probs.shape),
            f"{prefix}probs_top20": probs.gather(1, indices).numpy(),
            f"{prefix}probs_top20_idx": indices.numpy(),
        }
    assert_agrees(golden, computed)
