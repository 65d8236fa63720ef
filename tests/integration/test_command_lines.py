"""The command lines as a user runs them: results, exit codes, and one clear line for bad input."""

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from regionclip.clip.architectures import architecture_from_depth
from regionclip.config.loading import load_config
from regionclip.config.training_checks import training_problems
from regionclip.engine.command import choose_device
from regionclip.engine.ownership import own_folder
from regionclip.modeling.proposals.sources import offline_rpn_config
from tests.helpers.detectors import flat
from tests.helpers.images import write_image
from tests.helpers.paths import REPOSITORY
from tests.helpers.pickles import Bomb

ZERO_SHOT = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml"


@pytest.fixture
def detect(run, tiny, tmp_path):
    """Run the tiny detector on the images in `tmp_path/in`."""

    def call(*arguments, **overrides):
        merged = {k: v for k, v in (tiny["overrides"] | {"INPUT_DIR": tmp_path / "in"} | overrides).items()}
        return run("train_net.py", "--eval-only", "--config-file", tiny["config"], *arguments, *flat(merged))

    return call


def errors(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


def detected_images(folder):
    predictions = torch.load(folder / "output/inference/instances_predictions.pth", weights_only=True)
    return [prediction["image_id"] for prediction in predictions]


def oriented(path, code):
    exif = Image.Exif()
    exif[0x0112] = code
    write_image(path, exif=exif)


def sixteen_bit(path):
    values = np.random.default_rng(0).integers(0, 65535, (60, 90), dtype=np.uint16)
    Image.fromarray(values).save(path)


def test_unusual_images_are_detected_on(detect, tmp_path):
    folder = tmp_path / "in"
    write_image(folder / "a_one_pixel.png", size=(1, 1))
    write_image(folder / "b_wide.png", size=(20000, 20))
    write_image(folder / "c_gray.png", mode="L")
    write_image(folder / "d_cmyk.jpg", mode="CMYK")
    sixteen_bit(folder / "e_sixteen_bit.png")
    oriented(folder / "f_rotated.jpg", 6)
    (folder / "notes.txt").write_text("no image")
    write_image(folder / "sub" / "ignored.png")
    code, output = detect()
    assert code == 0, output
    assert detected_images(tmp_path) == [0, 1, 2, 3, 4, 5]
    boxes = json.loads((tmp_path / "output/inference/lvis_instances_results.json").read_text())
    assert boxes
    sizes = [(1, 1), (20000, 20), (90, 60), (90, 60), (90, 60), (60, 90)]
    for result in boxes:
        x, y, width, height = result["bbox"]
        assert x >= 0 and y >= 0
        assert x + width <= sizes[result["image_id"]][0] * 1.001
        assert y + height <= sizes[result["image_id"]][1] * 1.001


def test_corrupt_images_are_reported_at_the_end_and_the_rest_is_done(detect, tmp_path):
    folder = tmp_path / "in"
    write_image(folder / "a_good.jpg")
    write_image(folder / "b_cut.jpg", size=(300, 200))
    (folder / "b_cut.jpg").write_bytes((folder / "b_cut.jpg").read_bytes()[:4000])
    (folder / "c_empty.png").write_bytes(b"")
    write_image(folder / "d_good.jpg")
    code, output = detect()
    assert code == 1, output
    assert detected_images(tmp_path) == [0, 3]
    tail = output.splitlines()[-12:]
    assert any("b_cut.jpg" in line for line in tail)
    assert any("c_empty.png" in line for line in tail)
    assert "2 images, 2 failed" in output


def no_images(folder):
    folder.mkdir()


def unsafe_embeddings(path):
    path.write_bytes(pickle.dumps(Bomb()))
    return {"MODEL.CLIP.TEXT_EMB_PATH": str(path)}


BAD_INPUT = {
    "missing weights": lambda tmp: {"MODEL.WEIGHTS": "no/such.pth"},
    "no weights at all": lambda tmp: {"MODEL.WEIGHTS": ""},
    "512-d embeddings": lambda tmp: {"MODEL.CLIP.TEXT_EMB_PATH": save(torch.rand(1203, 512), tmp / "e.pth")},
    "80 rows for 1203 classes": lambda tmp: {"MODEL.CLIP.TEXT_EMB_PATH": save(torch.rand(80, 32), tmp / "e.pth")},
    "unsafe embeddings": lambda tmp: unsafe_embeddings(tmp / "e.pth"),
    "truncated weights": lambda tmp: {"MODEL.WEIGHTS": truncated(tmp / "w.pth")},
    "unsafe weights": lambda tmp: {"MODEL.WEIGHTS": save({"model": {"a": torch.rand(1)}, "x": Bomb()}, tmp / "w.pth")},
    "unknown dataset": lambda tmp: {"DATASETS.TEST": "('coco_2018_val',)"},
    "missing annotations": lambda tmp: {"DATASETS.TEST": "('lvis_v1_val',)"},
    "no dataset at all": lambda tmp: {"DATASETS.TEST": "()"},
    "weights of nothing": lambda tmp: {"MODEL.WEIGHTS": save({"model": {1: torch.rand(2)}}, tmp / "w.pth")},
    "missing image folder": lambda tmp: {"INPUT_DIR": "no/such/folder"},
    "unknown key": lambda tmp: {"MODEL.NO_SUCH_KEY": "1"},
    "unknown region source": lambda tmp: {"MODEL.CLIP.CROP_REGION_TYPE": "GRIDS"},
    "ground truth without annotations": lambda tmp: {
        "MODEL.CLIP.CROP_REGION_TYPE": "GT",
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": "False",
    },
}


def save(content, path):
    torch.save(content, path)
    return str(path)


def truncated(path):
    save({"model": {"a": torch.rand(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(detect, tmp_path, case):
    write_image(tmp_path / "in" / "a.jpg")
    code, output = detect(**BAD_INPUT[case](tmp_path))
    assert code == 2, output
    assert len(errors(output)) >= 1
    assert "Traceback" not in output
    assert "expected" in errors(output)[0] and "Fix:" in errors(output)[0]
    assert not (tmp_path / "output").exists()
    assert not Path("exploded").exists()


def test_own_words_on_own_images(detect, run, embedding_file, tmp_path):
    write_image(tmp_path / "in" / "a.jpg")
    words = {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("mine", 5, 32), "MODEL.ROI_HEADS.NUM_CLASSES": "5"}
    code, output = detect(**words)
    assert code == 0, output
    results = tmp_path / "output/inference/lvis_instances_results.json"
    assert {result["category_id"] for result in json.loads(results.read_text())} <= {1, 2, 3, 4, 5}
    # The names of LVIS would be wrong for them.
    arguments = ("--output", "regions", "--input-dir", tmp_path / "in", "--dataset", "lvis_v1_val_custom_img")
    code, output = run("visualize_json_results.py", "--input", results, *arguments)
    assert (code, len(errors(output))) == (2, 1), output


@pytest.mark.parametrize("content", ["[]", "{", '{"images": [{"id": 1}]}'])
def test_corrupt_annotations_are_one_error(run, tiny, embedding_file, tmp_path, content):
    annotations = tmp_path / "datasets" / "coco" / "annotations" / "ovd_ins_val2017_all.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text(content)
    overrides = tiny["overrides"] | {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32)}
    code, output = run("train_net.py", "--eval-only", "--config-file", ZERO_SHOT, *flat(overrides))
    assert (code, len(errors(output))) == (2, 1), output
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["coco_2018_train", "coco_2017_ovd_b_train"])
def test_training_on_missing_data_is_one_error(run, tiny, embedding_file, name):
    overrides = tiny["overrides"] | {"DATASETS.TRAIN": f"('{name}',)", "DATASETS.TEST": "()"}
    overrides |= {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32)}
    code, output = run("train_net.py", "--config-file", ZERO_SHOT, *flat(overrides))
    assert (code, len(errors(output))) == (2, 1), output


def test_empty_folder_is_one_error(detect, tmp_path):
    (tmp_path / "in").mkdir()
    code, output = detect()
    assert (code, len(errors(output))) == (2, 1), output
    assert not (tmp_path / "output").exists()


def test_unreadable_yaml_is_one_error(run, tmp_path):
    (tmp_path / "broken.yaml").write_text("MODEL: [")
    code, output = run("train_net.py", "--eval-only", "--config-file", "broken.yaml")
    assert (code, len(errors(output))) == (2, 1), output


def coco_files(root):
    """Write two images and COCO annotations for both splits, with the stock 80 categories."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for year in ("train2017", "val2017"):
        images, annotations = [], []
        for i, name in enumerate(("one.jpg", "two.jpg")):
            write_image(root / year / name)
            images.append({"id": i + 1, "file_name": name, "width": 90, "height": 60})
            for n, category in enumerate((1, 17, 44)):  # person (base), cat (novel), bottle (base)
                box = [5.0 + 20 * n, 5.0, 20.0, 30.0 + i]
                area, number = box[2] * box[3], len(annotations) + 1
                x, y, w, h = box
                mask = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                common = {"image_id": i + 1, "category_id": category, "iscrowd": 0, "segmentation": mask}
                annotations.append({"id": number, "bbox": box, "area": area} | common)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{year}.json").write_text(json.dumps(content))


@pytest.fixture
def annotated_boxes(tmp_path):
    """Return the annotated boxes of the images of `coco_files`, as a file of boxes by image name."""

    def write():
        content = json.loads((tmp_path / "datasets/coco/annotations/ovd_ins_val2017_all.json").read_text())
        boxes = {image["file_name"]: [] for image in content["images"]}
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            boxes[names[annotation["image_id"]]].append([x, y, x + width, y + height])
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        return str(tmp_path / "boxes.json")

    return write


def test_boxes_of_a_file_are_evaluated_like_annotated_ones(run, tiny, embedding_file, annotated_boxes, tmp_path):
    coco_files(tmp_path / "datasets" / "coco")
    code, output = run("prepare_coco_ovd.py")
    assert code == 0, output
    overrides = tiny["overrides"] | {
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32),
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": "False",
        "MODEL.CLIP.NO_BOX_DELTA": "True",
        "MODEL.CLIP.PROPOSAL_FILE": annotated_boxes(),
    }
    results = {}
    for source in ("GT", "FILE"):
        merged = overrides | {"MODEL.CLIP.CROP_REGION_TYPE": source, "OUTPUT_DIR": str(tmp_path / source)}
        code, output = run("train_net.py", "--eval-only", "--num-gpus", "0", "--config-file", ZERO_SHOT, *flat(merged))
        assert code == 0, output
        results[source] = json.loads((tmp_path / source / "inference/coco_instances_results.json").read_text())
    assert len(results["GT"]) > 2
    numbers = {source: [[*entry["bbox"], entry["score"]] for entry in found] for source, found in results.items()}
    assert numbers["FILE"] == pytest.approx(np.array(numbers["GT"]), abs=1e-4)
    assert [entry["category_id"] for entry in results["FILE"]] == [entry["category_id"] for entry in results["GT"]]
    summary = json.loads((tmp_path / "FILE/inference/metrics.json").read_text())
    assert "boxes of boxes.json" in summary["protocol"]


@pytest.mark.parametrize("boxes", ["GT", "RPN"])
def test_coco_evaluation_end_to_end(run, tiny, embedding_file, tmp_path, boxes):
    coco_files(tmp_path / "datasets" / "coco")
    code, output = run("prepare_coco_ovd.py")
    assert code == 0, output
    overrides = tiny["overrides"] | {
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32),
        "MODEL.CLIP.CROP_REGION_TYPE": boxes,
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": str(boxes == "RPN"),
    }
    code, output = run("train_net.py", "--eval-only", "--num-gpus", "0", "--config-file", ZERO_SHOT, *flat(overrides))
    assert code == 0, output
    summary = json.loads((tmp_path / "output/inference/metrics.json").read_text())
    assert summary["images"] == 2
    assert "65 classes (17 novel, 48 base)" in summary["protocol"]
    assert ("ground-truth boxes" if boxes == "GT" else "RPN boxes of tiny_rpn") in summary["protocol"]
    metrics = summary["metrics"]["bbox"]
    assert {"AP", "AP50", "AP50-novel", "AP50-base", "AP50-all", "AP-person"} <= set(metrics)
    assert metrics["AP50-all"] == pytest.approx(metrics["AP50"])
    # Three classes have objects: one novel, two base; the mean of the groups is the mean over classes.
    assert metrics["AP50-all"] == pytest.approx((metrics["AP50-novel"] + 2 * metrics["AP50-base"]) / 3)
    results = json.loads((tmp_path / "output/inference/coco_instances_results.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}


def test_annotated_images_keep_their_names(run, tiny, detect, tmp_path):
    write_image(tmp_path / "in" / "a.jpg")
    write_image(tmp_path / "in" / "b.png")
    detect()
    results = "output/inference/lvis_instances_results.json"
    code, output = run(
        *("visualize_json_results.py", "--input", results, "--output", "regions", "--input-dir", tmp_path / "in"),
        *("--dataset", "lvis_v1_val_custom_img", "--conf-threshold", "0", "--show-unique-boxes", "--max-boxes", "5"),
    )
    assert code == 0, output
    assert sorted(path.name for path in (tmp_path / "regions").iterdir()) == ["a.jpg", "b.png"]
    assert Image.open(tmp_path / "regions" / "a.jpg").size == (90, 60)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--input", "none.json", "--output", "o", "--dataset", "lvis_v1_val_custom_img"], "no such file"),
        (["--input", "bad.json", "--output", "o", "--dataset", "lvis_v1_val_custom_img"], "results format"),
        (["--input", "bad.json", "--output", "o", "--dataset", "coco_2018"], "registered dataset"),
    ],
)
def test_visualising_bad_input_is_one_error(run, tmp_path, arguments, expected):
    write_image(tmp_path / "datasets" / "custom_images" / "a.jpg")
    (tmp_path / "bad.json").write_text('{"no": "list"}')
    code, output = run("visualize_json_results.py", *arguments)
    assert (code, len(errors(output))) == (2, 1), output
    assert expected in output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("tool", ["train_net.py", "visualize_json_results.py", "prepare_coco_ovd.py"])
def test_help_is_printed(run, tool):
    code, output = run(tool, "--help")
    assert code == 0
    assert "usage:" in output


def test_upstream_command_line_runs_as_a_process(tiny, tmp_path):
    """One real process from another folder: no state of the tests helps it."""
    write_image(tmp_path / "in" / "a.jpg")
    overrides = tiny["overrides"] | {"INPUT_DIR": str(tmp_path / "in"), "OUTPUT_DIR": str(tmp_path / "out")}
    command = [sys.executable, str(REPOSITORY / "tools/train_net.py"), "--eval-only", "--num-gpus", "1"]
    done = subprocess.run(
        [*command, "--config-file", tiny["config"], *flat(overrides)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "inference" / "lvis_instances_results.json").is_file()
    assert (tmp_path / "out" / "config.yaml").is_file()


SIZES = ("rn50", "rn50x4")
CASES = {
    "test_zeroshot_inference.sh": [f"{s}-{b}-{d}" for s in SIZES for b in ("gt", "rpn") for d in ("coco", "lvis")],
    "test_transfer_learning.sh": [f"{s}-{d}" for s in SIZES for d in ("coco", "coco-novel", "coco-base", "lvis")],
    "train_transfer_learning.sh": [f"{s}-{d}" for s in SIZES for d in ("coco", "lvis")],
    "visualize_zeroshot_inference.sh": list(SIZES),
    "visualize_transfer_learning.sh": list(SIZES),
}


OTHER_SCRIPTS = ("train_rpn.sh", "pretrain.sh", "extract_concept_features.sh", "extract_region_features.sh")
RPN_CASES = ("coco48", "coco65", "coco80", "lvis866", "lvis866-lsj")


def test_every_script_is_tested():
    assert {*CASES, *OTHER_SCRIPTS} == {path.name for path in REPOSITORY.glob("*.sh")}


@pytest.fixture
def recorded_call(tmp_path):
    """Run a script with a stand-in for Python and return what it was called with."""

    def call(script, *arguments):
        record, recorder = tmp_path / "calls.txt", tmp_path / "python"
        recorder.write_text(f'#!/bin/sh\necho "$@" >> {record}\n')
        recorder.chmod(0o755)
        environment = {"PYTHON": str(recorder), "PATH": "/usr/bin:/bin"}
        subprocess.run(["bash", str(REPOSITORY / script), *arguments], env=environment, check=True)
        return record.read_text()

    return call


@pytest.mark.parametrize("case", ["", *RPN_CASES])
def test_rpns_are_trained_on_their_classes(case, recorded_call):
    call = recorded_call("train_rpn.sh", *filter(None, [case]))
    assert call.startswith("./tools/train_net.py --num-gpus 1 --config-file ./configs/")
    overrides = call.split("--config-file ")[1].split()
    cfg = load_config(overrides[0], overrides[1:])
    assert f"./output/rpn/{case or 'coco48'}" == cfg.OUTPUT_DIR
    (train_set,) = cfg.DATASETS.TRAIN
    classes = MetadataCatalog.get(train_set).thing_classes
    assert len(classes) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in cfg.DATASETS.TEST:
        assert MetadataCatalog.get(name).thing_classes == classes
    rpn = offline_rpn_config(load_config("", ["MODEL.CLIP.OFFLINE_RPN_CONFIG", rpn_config(case)]))
    if case == "lvis866-lsj":
        jittered = ["MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED", "True"]
        options = ["MODEL.CLIP.OFFLINE_RPN_CONFIG", rpn_config(case), *jittered]
        rpn = offline_rpn_config(load_config("", options))
    # What is trained fits where it will be loaded.
    for node in ("BACKBONE", "RESNETS", "FPN", "ANCHOR_GENERATOR"):
        assert cfg.MODEL[node] == rpn.MODEL[node], node
    assert cfg.MODEL.RPN.CONV_DIMS == rpn.MODEL.RPN.CONV_DIMS


@pytest.mark.parametrize("case", ["", "rn50", "rn50x4", "rn50-small-budget"])
def test_pretraining_is_called_with_published_names(case, recorded_call):
    call = recorded_call("pretrain.sh", *filter(None, [case]))
    overrides = call.split("--config-file ")[1].split()
    cfg = load_config(overrides[0], overrides[1:])
    large = case == "rn50x4"
    size = "RN50x4" if large else "RN50"
    assert f"./pretrained_ckpt/clip/teacher_{size}_student_{size}_OAI_CLIP.pth" == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.CLIP.CONCEPT_POOL_EMB.endswith("4764_emb_rn50x4.pth" if large else "4764_emb.pth")
    assert architecture_from_depth(cfg.MODEL.RESNETS.DEPTH).name == size
    assert architecture_from_depth(cfg.MODEL.CLIP.TEACHER_RESNETS_DEPTH).name == size
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION == cfg.MODEL.CLIP.TEACHER_POOLER_RESOLUTION
    assert not [p for p in training_problems(cfg) if "CONCEPT_POOL_EMB" not in p.what]


@pytest.mark.parametrize("case", ["", "rn50", "rn50x4", "rn50-proposals", "rn50x4-proposals"])
def test_regions_are_extracted_with_published_names(case, recorded_call):
    call = recorded_call("extract_region_features.sh", *filter(None, [case]))
    assert call.startswith("./tools/extract_region_features.py --num-gpus 1 --config-file ./configs/LVISv1")
    overrides = call.split("--config-file ")[1].split()
    cfg = load_config(overrides[0], overrides[1:])
    size = architecture_from_depth(cfg.MODEL.RESNETS.DEPTH)
    assert size.name == ("RN50x4" if "x4" in case else "RN50")
    assert (size.embedding_dim, size.pooler_resolution) == (
        cfg.MODEL.CLIP.TEXT_EMB_DIM,
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
    )
    assert (cfg.INPUT_DIR, cfg.OUTPUT_DIR) == ("./datasets/custom_images", "./output/region_feats")
    assert bool(cfg.MODEL.CLIP.TEXT_EMB_PATH) == ("proposals" not in case)


@pytest.mark.parametrize("case", ["", "rn50", "rn50x4"])
def test_concepts_are_extracted_with_published_names(case, recorded_call):
    call = recorded_call("extract_concept_features.sh", *filter(None, [case]))
    assert call.startswith("./tools/extract_concept_features.py --config-file ./configs/LVISv1")
    overrides = call.split("--config-file ")[1].split()
    cfg = load_config(overrides[0], overrides[1:])
    assert f"./pretrained_ckpt/regionclip/regionclip_pretrained-cc_{case or 'rn50'}.pth" == cfg.MODEL.WEIGHTS
    assert architecture_from_depth(cfg.MODEL.RESNETS.DEPTH).embedding_dim == cfg.MODEL.CLIP.TEXT_EMB_DIM
    assert (cfg.INPUT_DIR, cfg.OUTPUT_DIR) == ("./datasets/custom_concepts", "./output/concept_feats")


def rpn_config(case):
    """Return the OFFLINE_RPN_CONFIG that goes with an RPN."""
    if case.startswith("lvis"):
        return "configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    return "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml"


@pytest.mark.parametrize(("script", "case"), [(s, c) for s, cases in CASES.items() for c in ("", *cases)])
def test_scripts_call_the_tools_with_published_names(script, case, recorded_call):
    """An empty case takes the default."""
    call = recorded_call(script, *filter(None, [case]))
    assert "./tools/train_net.py" in call
    assert ("--eval-only" in call) == ("train_transfer" not in script)
    assert "./pretrained_ckpt/regionclip/regionclip_" in call
    assert "./pretrained_ckpt/concept_emb/" in call
    files = [part for part in call.split() if part.startswith("./configs")]
    assert files
    assert all((REPOSITORY / part).is_file() for part in files)
    is_large = "x4" in case or (not case and "visualize" in script)
    assert ("DEPTH 200" in call) == ("_cls_emb_rn50x4.pth" in call) == is_large
    # The whole command merges, and the sizes agree with each other.
    overrides = call.splitlines()[0].split("--config-file ")[1].split()
    cfg = load_config(overrides[0], overrides[1:])
    size = architecture_from_depth(cfg.MODEL.RESNETS.DEPTH)
    assert size.pooler_resolution == cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    assert size.embedding_dim == cfg.MODEL.CLIP.TEXT_EMB_DIM


def test_script_refuses_an_unknown_case():
    for script in (*CASES, *OTHER_SCRIPTS):
        done = subprocess.run(["bash", str(REPOSITORY / script), "rn49-gt-coco"], capture_output=True, text=True)
        assert done.returncode == 2
        assert "error: unknown " in done.stderr


@pytest.mark.parametrize(("detected", "drawn"), [(0, True), (1, True), (2, False)])
def test_drawing_follows_the_folders_and_the_exit_code_of_detection(tmp_path, detected, drawn):
    record, stand_in = tmp_path / "calls.txt", tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {record}\ncase $1 in *train_net.py) exit {detected};; esac\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", str(REPOSITORY / "visualize_zeroshot_inference.sh"), "rn50", "OUTPUT_DIR", "/o", "INPUT_DIR", "/i"],
        env={"PYTHON": str(stand_in), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == detected
    calls = record.read_text().splitlines()
    assert len(calls) == 1 + drawn
    assert calls[0].endswith("OUTPUT_DIR /o INPUT_DIR /i")
    if drawn:
        for part in ("--input /o/inference/lvis_instances_results.json", "--output /o/regions", "--input-dir /i"):
            assert part in calls[1]


def test_unwritable_output_is_one_error(detect, tmp_path):
    write_image(tmp_path / "in" / "a.jpg")
    (tmp_path / "file").write_text("not a folder")
    code, output = detect(OUTPUT_DIR=tmp_path / "file" / "out")
    assert (code, len(errors(output))) == (2, 1), output
    assert "OUTPUT_DIR" in output
    assert (tmp_path / "file").read_text() == "not a folder"


def test_device_falls_back_to_the_cpu():
    assert choose_device("cuda", num_gpus=0) == "cpu"
    assert choose_device("cpu", num_gpus=8) == "cpu"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("cuda", num_gpus=1) == expected


def test_interrupted_evaluation_goes_on_where_it_stopped(tiny, tmp_path):
    for i in range(14):
        write_image(tmp_path / "in" / f"{i:02}.jpg", size=(90 + i, 60))
    overrides = tiny["overrides"] | {"INPUT_DIR": str(tmp_path / "in")}
    tool = [sys.executable, str(REPOSITORY / "tools/train_net.py"), "--eval-only", "--config-file", tiny["config"]]

    def command(folder):
        return [*tool, *flat(overrides | {"OUTPUT_DIR": str(tmp_path / folder)})]

    journal = tmp_path / "out" / "inference" / "predictions.0.jsonl"
    process = subprocess.Popen(command("out"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("\n") > 3):
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = journal.read_text()
    assert 3 < before.count("\n") < 15, "the run was not interrupted in the middle"
    journal.write_text(before + '{"image_id": 13, "inst')  # a line cut by the interruption
    done = subprocess.run(command("out"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "images were finished by an interrupted run" in done.stdout
    assert "Done: 14 images, 0 failed" in done.stdout
    assert not journal.exists()
    results = (tmp_path / "out/inference/lvis_instances_results.json").read_text()
    # The same without interruption, in a folder of the same name: the config is part of the fingerprint.
    shutil.rmtree(tmp_path / "out")
    assert subprocess.run(command("out"), cwd=tmp_path, capture_output=True).returncode == 0
    whole = (tmp_path / "out/inference/lvis_instances_results.json").read_text()
    by_image = [sorted(json.loads(text), key=lambda r: (r["image_id"], -r["score"])) for text in (results, whole)]
    assert by_image[0] == by_image[1]


def test_the_unfinished_results_of_another_run_are_refused(detect, tmp_path):
    write_image(tmp_path / "in" / "a.jpg")
    journal = tmp_path / "output" / "inference" / "predictions.0.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('another fingerprint\n{"image_id": 0, "instances": []}\n')
    code, output = detect()
    assert (code, len(errors(output))) == (2, 1), output
    assert "those of a run with other words, model, images or options in predictions.0.jsonl" in output
    assert [path.name for path in (tmp_path / "output").rglob("*.*")] == [journal.name]
    journal.write_text("another fingerprint\n")  # without a result there is nothing to lose
    code, output = detect()
    assert code == 0, output
    assert detected_images(tmp_path) == [0]
    assert json.loads((tmp_path / "output/inference/lvis_instances_results.json").read_text())


def test_the_folder_of_a_live_run_is_refused(detect, tmp_path):
    write_image(tmp_path / "in" / "a.jpg")
    with own_folder(tmp_path / "output", "OUTPUT_DIR"):
        code, output = detect()
        assert (code, len(errors(output))) == (2, 1), output
        assert "expected a folder that no other run uses, got that of process" in output
    assert not (tmp_path / "output").exists()
