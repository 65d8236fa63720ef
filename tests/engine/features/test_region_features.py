"""The published tool that saves region embeddings, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionclip.config.loading import load_config
from regionclip.data.region_features.formats import output_files
from regionclip.data.region_features.index import FeatureFolder
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.goldens import assert_agrees, best_words
from tests.helpers.paths import DATA, GOLDENS, REPOSITORY

CONFIG = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_zsinf.yaml"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of six images, two of which share their name up to the first dot."""
    photos = sorted((DATA / "four_photos" / "images").iterdir())
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


@pytest.fixture
def here(monkeypatch, run_tool):
    """Run a command line in this process."""

    def call(command):
        monkeypatch.chdir(command["cwd"])
        tool, *arguments = command["args"][1:]
        return run_tool(Path(tool).name, *arguments)

    return call


def load(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))}


NAMES = ["a.pth", "b.pth", "c.x.jpg.pth", "c.y.jpg.pth", "d.pth", "e.pth"]


def test_detections_and_proposals_have_the_published_keys(command, here, tmp_path):
    code, output = here(command())
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
    code, output = here(command(MODEL__CLIP__TEXT_EMB_PATH="", OUTPUT_DIR=tmp_path / "proposals"))
    assert code == 0, output
    proposals = load(tmp_path / "proposals")
    assert list(proposals) == NAMES
    assert all(set(features) == {"boxes", "feats"} for features in proposals.values())
    assert all(len(features["boxes"]) == len(features["feats"]) > 0 for features in proposals.values())


@pytest.mark.slow
def test_two_processes_write_what_one_writes(command, here, tmp_path):
    code, output = here(command())
    assert code == 0, output
    code, output = run(command("--num-gpus", "2", "--dist-url", "auto", OUTPUT_DIR=tmp_path / "two"))
    assert code == 0, output
    assert output.count("Done: 6 images written") == 1
    one, two = load(tmp_path / "out"), load(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name][key], two[name][key]) for name in one for key in one[name])


def test_a_killed_run_goes_on_and_redoes_partial_files(command, here, tmp_path):
    code, output = here(command(OUTPUT_DIR=tmp_path / "whole"))
    assert code == 0, output
    with subprocess.Popen(**command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("*.pth")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = sorted((tmp_path / "out").glob("*.pth"))
    assert done
    done[0].write_bytes(done[0].read_bytes()[:500])
    code, output = here(command())
    assert code == 0, output
    assert f"{len(done) - 1} there before" in output
    whole, resumed = load(tmp_path / "whole"), load(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name][key], resumed[name][key]) for name in whole for key in whole[name])


def test_features_of_other_weights_are_not_mixed(command, here, tmp_path):
    assert here(command())[0] == 0
    code, output = here(command(TEST__DETECTIONS_PER_IMAGE=7))
    assert code == 2
    assert f"error: OUTPUT_DIR {tmp_path}/out: expected no features of another config or other weights" in output


def test_unreadable_images_are_reported_and_the_rest_is_done(command, here, folder, tmp_path):
    (folder / "b.jpg").write_bytes(b"no image")
    code, output = here(command())
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
def test_bad_input_is_one_line(overrides, message, command, here, tmp_path):
    code, output = here(command(**overrides))
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


BOXES = {
    "a.jpg": [[10, 10, 90, 60], [0, 0, 30, 30], [10, 10, 90, 60]],
    "b": [[5.5, 5, 50, 50]],
    "c.x.jpg": [],
    "d.jpg": [[20, 20, 5, 5]],
    "e.jpg": [[0, 0, 40, 40]],
}


def boxes_file(kind, folder):
    path = folder / f"boxes.{'npz' if kind == 'npz' else 'json'}"
    if kind == "npz":
        np.savez(path, **{name: np.array(rows).reshape(-1, 4) for name, rows in BOXES.items()})
    elif kind == "json":
        path.write_text(json.dumps(BOXES))
    else:
        images = [{"id": i, "file_name": f"some/{name}"} for i, name in enumerate(BOXES)]
        annotations = [
            {"image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, rows in enumerate(BOXES.values())
            for x1, y1, x2, y2 in rows
        ]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(path)


@pytest.mark.parametrize("kind", ["json", "npz", "coco"])
def test_given_boxes_keep_their_order_and_bad_ones_fail_alone(kind, command, here, tmp_path):
    code, output = here(command("--regions", boxes_file(kind, tmp_path)))
    assert code == 1, output
    assert "5 images written, 0 there before, 1 failed" in output
    assert "row 0: expected x1 < x2 and y1 < y2, got [20.0, 20.0, 5.0, 5.0]" in output
    files = load(tmp_path / "out")
    assert "d.pth" not in files
    torch.testing.assert_close(files["a.pth"]["boxes"], torch.tensor(BOXES["a.jpg"]).float())
    assert torch.equal(files["a.pth"]["feats"][0], files["a.pth"]["feats"][2])
    assert files["c.x.jpg.pth"]["feats"].shape == (0, 32)
    for features in files.values():
        count = len(features["boxes"])
        assert {key: len(value) for key, value in features.items()} == dict.fromkeys(features, count)
        assert torch.equal(features["classes"], features["probs"][:, :-1].argmax(dim=1))
        assert features["probs"].shape == (count, 1204)


def test_grid_and_no_classes(command, here, tmp_path):
    code, output = here(command("--regions", "GRID", MODEL__CLIP__TEXT_EMB_PATH=""))
    assert code == 0, output
    for name, features in load(tmp_path / "out").items():
        assert set(features) == {"boxes", "feats"}, name
        assert len(features["boxes"]) == len(features["feats"]) > 9


def test_annotated_boxes_of_a_dataset(command, tmp_path, monkeypatch):
    photos = DATA / "four_photos"
    root = tmp_path / "datasets" / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(photos / "images")
    content = json.loads((photos / "annotations.json").read_text())
    (root / "annotations" / "ovd_ins_val2017_b.json").write_text(json.dumps(content))
    arguments = command("--dataset", "coco_2017_ovd_b_test", MODEL__CLIP__TEXT_EMB_PATH="")
    arguments["env"] |= {"DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    code, output = run(arguments)
    assert code == 0, output
    scaled = {image["id"]: image["file_name"] for image in content["images"]}
    wanted = {name: [] for name in scaled.values()}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            x, y, width, height = annotation["bbox"]
            wanted[scaled[annotation["image_id"]]].append([x, y, x + width, y + height])
    files = load(tmp_path / "out")
    assert len(files) == len(wanted)
    for name, boxes in wanted.items():
        found = files[f"{name.split('.')[0]}.pth"]
        torch.testing.assert_close(found["boxes"], torch.tensor(boxes).reshape(-1, 4), atol=0.01, rtol=1e-4)
        assert len(found["feats"]) == len(boxes)


def test_the_images_that_failed_are_known_by_their_folders(tmp_path):
    index = {
        "format": "safetensors",
        "images": {"sub/x.jpg": ["s", 0, 1]},
        "failures": {"x.jpg": "a", "sub/y.jpg": "b"},
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    folder = FeatureFolder(tmp_path)
    failed = {path: folder.failed(f"/images/{path}") for path in ("x.jpg", "sub/x.jpg", "sub/y.jpg", "y.jpg", "z.jpg")}
    assert failed == {"x.jpg": True, "sub/x.jpg": False, "sub/y.jpg": True, "y.jpg": False, "z.jpg": False}


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_shards_hold_what_files_hold(kind, command, here, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"no image")
    code, output = here(command())
    assert code == 1, output
    code, output = here(command("--format", kind, "--images-per-shard", "3", OUTPUT_DIR=tmp_path / "shards"))
    assert code == 1, output
    assert "6 images written, 0 there before, 1 failed" in output
    assert len(list((tmp_path / "shards").glob(f"features-*-of-00003.{kind}"))) == 3
    found = FeatureFolder(tmp_path / "shards")
    assert list(found) == ["a.jpg", "b.jpg", "c.x.jpg", "c.y.jpg", "d.jpg", "e.jpg"]
    assert list(found.failures) == ["broken.jpg"]
    files = load(tmp_path / "out")
    for image, name in zip(found, NAMES, strict=True):
        assert found[image].keys() == files[name].keys()
        for key, value in files[name].items():
            torch.testing.assert_close(found[image][key], value, rtol=0, atol=0)
    code, output = here(command("--format", kind, "--images-per-shard", "3", OUTPUT_DIR=tmp_path / "shards"))
    assert code == 1, output
    assert "0 images written, 6 there before, 1 failed" in output
    code, output = here(command("--format", kind, OUTPUT_DIR=tmp_path / "shards"))
    assert code == 2
    assert "expected no features of another config" in output


def test_parquet_is_read_by_other_programs(command, here, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    code, output = here(command("--format", "parquet", "--regions", boxes_file("json", tmp_path)))
    assert code == 1, output
    (path,) = (tmp_path / "out").glob("*.parquet")
    table = parquet.read_table(path).to_pylist()
    assert [row["image"] for row in table] == ["a.jpg"] * 3 + ["b.jpg", "e.jpg"]
    assert table[0]["boxes"] == [10, 10, 90, 60]
    assert len(table[0]["feats"]) == 32


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "safetensors", "--images-per-shard", "2"],
        pytest.param(["--images-at-once", "2"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_write_the_same_shards_and_batches(arguments, command, tmp_path, here):
    code, output = here(command(*arguments))
    assert code == 0, output
    code, output = run(command(*arguments, "--num-gpus", "2", "--dist-url", "auto", OUTPUT_DIR=tmp_path / "two"))
    assert code == 0, output
    one, two = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "out", tmp_path / "two")
    )
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one if not name.endswith(".pth"))
    files, others = load(tmp_path / "out"), load(tmp_path / "two")
    assert all(torch.equal(files[name][key], others[name][key]) for name in files for key in files[name])


def test_a_killed_run_of_shards_goes_on(command, here, tmp_path):
    arguments = ("--format", "safetensors", "--images-per-shard", "1")
    code, output = here(command(*arguments, OUTPUT_DIR=tmp_path / "whole"))
    assert code == 0, output
    with subprocess.Popen(**command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = sorted((tmp_path / "out").glob("*.safetensors"))
    assert done
    done[0].write_bytes(done[0].read_bytes()[:-40])
    code, output = here(command(*arguments))
    assert code == 0, output
    assert f"{len(done) - 1} there before" in output
    whole, resumed = FeatureFolder(tmp_path / "whole"), FeatureFolder(tmp_path / "out")
    assert list(whole) == list(resumed)
    assert all(torch.equal(whole[name][key], resumed[name][key]) for name in whole for key in whole[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regions", "missing.json"], "boxes missing.json: expected a JSON or npz file, got no such file"),
        (["--dataset", "coco_2017_nothing"], "--dataset: expected a registered dataset"),
        (["--images-at-once", "0"], "expected a number above 0, got 0"),
        (["--format", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_bad_options_are_one_line(arguments, message, command, here, tmp_path):
    code, output = here(command(*arguments))
    assert code == 2
    assert message in output
    assert not (tmp_path / "out").exists()


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
    if case == "no_emb":
        # Proposals that are 0.02 px elsewhere have other features: they are compared in the published boxes.
        (tmp_path / "boxes.json").write_text(json.dumps({"460229.png": (golden[f"{prefix}boxes"] / scale).tolist()}))
        given = ["--regions", tmp_path / "boxes.json", *overrides, *folders, "OUTPUT_DIR", tmp_path / "given"]
        code, output = run({"args": [*map(str, [*tool, *given])], "cwd": REPOSITORY})
        assert code == 0, output
        features = torch.load(tmp_path / "given" / "460229.pth", weights_only=True)
        computed[f"{prefix}feats"] = features["feats"].numpy()
    if case == "with_emb":
        probs, classes = features["probs"], features["classes"]
        indices = best_words(golden, prefix, torch.from_numpy(computed[f"{prefix}boxes"]), classes)
        computed |= {
            f"{prefix}classes": classes.numpy(),
            f"{prefix}probs_of_class": probs.gather(1, classes[:, None])[:, 0].numpy(),
            f"{prefix}probs_shape": np.array(probs.shape),
            f"{prefix}probs_top20": probs.gather(1, indices).numpy(),
            f"{prefix}probs_top20_idx": indices.numpy(),
        }
    assert_agrees(golden, computed)
