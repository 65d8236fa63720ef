"""`regionclip lp-ovod`: teaching words from unlabeled images, going on after a kill, and bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regionclip.config.loading import load_config
from regionclip.methods.lp_ovod.classes import TaughtNames
from regionclip.methods.lp_ovod.probing import ImageRegions, ProbeSettings, probe
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.mmdetection import lp_ovod_shapes
from tests.helpers.paths import GOLDENS, REPOSITORY
from tests.helpers.training import write_images
from tests.methods.lp_ovod.tiny import TEACHER, TEACHER_OVERRIDES, config

UNITS = np.load(GOLDENS / "p_lp_ovod.npz")
WORDS = "red box, blue box"


def write_detector(folder, cfg, text):
    folder.mkdir()
    model = build_model(cfg)
    fill_deterministic(model)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.yaml").write_text(cfg.dump())
    shutil.copy(text, folder / "text.safetensors")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, detector_folder):
    """Return a folder with a base detector, its teacher, and images."""
    folder = tmp_path_factory.mktemp("learn")
    text = detector_folder / "text.safetensors"
    base = {"MODEL__LP_OVOD__STAGE": "base", "MODEL__LP_OVOD__BASE_CLASSES": "person,car", "INPUT__MIN_SIZE_TEST": "64"}
    write_detector(folder / "base", config(**base, MODEL__LP_OVOD__NOVEL_CLASSES=""), text)
    write_detector(folder / "teacher", config(TEACHER, TEACHER_OVERRIDES), text)
    write_images(folder)
    return folder


def arguments(world, output, *more, words=WORDS, images=None, **options):
    given = {"words": words, "images": images or world / "images", "output": output}
    given |= {"model": world / "base", "teacher": world / "teacher", "per-word": 6, "min-objectness": 0.1, **options}
    flat = [str(part) for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["lp-ovod", "learn", *flat, "--device", "cpu", *more]


def weights(folder):
    return load_file(folder / "model.safetensors")


PROTOTYPES = "roi_heads.box_predictor.novel_prototypes"


def test_a_detector_learns_words_and_finds_them(command, world, tmp_path):
    code, out, error = command(*arguments(world, tmp_path / "taught", "--json"))
    assert code == 0, error
    found = json.loads(out.splitlines()[-1])
    assert found["words"] == ["red box", "blue box"] and found["regions"] == 12
    before, after = weights(world / "base"), weights(tmp_path / "taught")
    assert after.keys() - before.keys() == {PROTOTYPES}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert after[PROTOTYPES].shape == (2, 32) and bool(after[PROTOTYPES].any())
    page = (tmp_path / "taught" / "retrieved.html").read_text()
    assert page.count("<figure") == page.count("data:image/jpeg;base64,") == 12
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["red box", "blue box"]
    content = json.loads((tmp_path / "taught" / "retrieved.json").read_text())
    for category in (1, 2):
        cosines = [entry["cosine"] for entry in content["annotations"] if entry["category_id"] == category]
        assert len(cosines) == 6 and cosines == sorted(cosines, reverse=True)
    photo, seen = world / "images" / "0.png", tmp_path / "seen"
    given = ("detect", photo, "--output", seen, "--threshold", "0", "--device", "cpu", "--model", tmp_path / "taught")
    code, out, error = command(*given, "--words", "red box, person")
    assert code == 0, error
    code, _, error = command(*given, "--words", "traffic cone")
    assert code == 2 and "got traffic cone. Fix: teach it: regionclip lp-ovod learn" in error


def test_its_own_head_can_stand_for_the_teacher(command, world, tmp_path):
    code, out, error = command(*arguments(world, tmp_path / "taught", teacher="own"))
    assert code == 0, error
    assert "red box, blue box learned from 12 regions" in out
    assert bool(weights(tmp_path / "taught")[PROTOTYPES].any())


@pytest.mark.slow
def test_more_words_can_be_taught_later(command, world, tmp_path):
    assert command(*arguments(world, tmp_path / "one", words="red box"))[0] == 0
    code, _, error = command(*arguments(world, tmp_path / "two", words="blue box", model=tmp_path / "one"))
    assert code == 0, error
    one, two = weights(tmp_path / "one")[PROTOTYPES], weights(tmp_path / "two")[PROTOTYPES]
    assert torch.equal(two[:1], one) and bool(two[1].any())
    code, _, error = command(*arguments(world, tmp_path / "three", words="Red Box", model=tmp_path / "two"))
    assert code == 2 and "--words: expected words that the detector does not know, got Red Box" in error


def test_names_of_the_config_that_were_never_probed_can_be_taught(command, world, tmp_path, detector_folder):
    """A base detector names the novel classes of its experiment, and has no prototypes of them."""
    options = {"MODEL__LP_OVOD__STAGE": "base", "MODEL__LP_OVOD__BASE_CLASSES": "person,car"}
    cfg = config(**options, MODEL__LP_OVOD__NOVEL_CLASSES="cat,emoji", INPUT__MIN_SIZE_TEST="64")
    base = write_detector(tmp_path / "base", cfg, detector_folder / "text.safetensors")
    code, _, error = command(*arguments(world, tmp_path / "taught", words="emoji", model=base))
    assert code == 0, error
    assert weights(tmp_path / "taught")[PROTOTYPES].shape == (1, 32)
    code, _, error = command(*arguments(world, tmp_path / "taught", words="emoji", model=tmp_path / "taught"))
    assert code == 2 and "another folder than --model, got the same" in error
    packed = load_config(str(tmp_path / "taught" / "config.yaml"))
    names = TaughtNames.from_config(packed)
    assert (names.base, names.novel) == (("person", "car"), ("emoji",))  # no class list
    assert packed.MODEL.ENSEMBLE.NEGATIVES_PER_POSITIVE == 10


@pytest.mark.slow
def test_struck_out_regions_are_not_learned_from(command, world, tmp_path):
    output = tmp_path / "taught"
    assert command(*arguments(world, output))[0] == 0
    first, shards = weights(output)[PROTOTYPES], sorted((output / "work").glob("regions-*/*.safetensors"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    code, out, error = command(*arguments(world, output, exclude="2, 7"))
    assert code == 0, error
    assert "learned from 10 regions" in out
    assert [shard.stat().st_mtime_ns for shard in shards] == written  # nothing is embedded again
    assert not torch.equal(weights(output)[PROTOTYPES], first)
    page = (output / "retrieved.html").read_text()
    assert page.count("class=out") == 2
    code, _, error = command(*arguments(world, output, exclude=",".join(map(str, range(1, 7)))))
    assert code == 2 and "--exclude: expected a region left for each word, got none for red box" in error
    code, _, error = command(*arguments(world, output, exclude="99"))
    assert code == 2 and "--exclude: expected numbers from 1 to 12, got 99" in error
    code, _, error = command(*arguments(world, output, exclude="2", words="blue box, red box"))
    assert code == 2 and "--exclude: expected the regions of retrieved.html, got other words" in error
    code, _, error = command(*arguments(world, output, exclude="two"))
    assert code == 2 and "--exclude: expected numbers with commas, got 'two'" in error


@pytest.mark.slow
def test_a_killed_command_ends_with_the_same_detector(command, world, tmp_path):
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "cwd": REPOSITORY}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def given(name):
        return [sys.executable, "-m", "regionclip", *arguments(world, tmp_path / name)]

    assert subprocess.run(given("whole"), **options).returncode == 0
    for place in ("work/regions-*/features-*.safetensors", "work/probe-*/00000[2-9].safetensors"):
        with subprocess.Popen(given("killed"), **options) as process:
            while process.poll() is None and not list((tmp_path / "killed").glob(place)):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert list((tmp_path / "killed").glob(place))
        assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert subprocess.run(given("killed"), **options).returncode == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_another_folder_of_images_is_an_error(command, world, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(world / "images", images)
    assert command(*arguments(world, tmp_path / "taught", images=images))[0] == 0
    (images / "0.png").rename(images / "00.png")
    code, _, error = command(*arguments(world, tmp_path / "taught", images=images))
    assert (
        code == 2
        and "expected the images of the first run, got 1 new, 1 gone, 0 changed. Fix: restore them, or remove" in error
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_objectness": 1.0},
            "expected regions with an objectness of at least 1, got none for red box, blue",
        ),
        ({"words": "red box, Red box"}, "red box"),
        ({"words": "red box, person"}, "expected words that the detector does not know, got person"),
        ({"images": "nowhere"}, "expected a folder of images, got no such folder"),
    ],
)
def test_bad_input_is_one_error(options, message, command, world, tmp_path):
    code, _, error = command(*arguments(world, tmp_path / "taught", **options))
    assert code == 2 and message in error, error
    assert not (tmp_path / "taught" / "model.safetensors").exists()


def test_detectors_of_other_methods_and_clips_are_errors(command, world, tmp_path, detector_folder):
    code, _, error = command(*arguments(world, tmp_path / "out", model=detector_folder))
    assert code == 2 and "--model: expected a detector that can be taught, LPOVOD, got CLIPFastRCNN" in error
    code, _, error = command(*arguments(world, tmp_path / "out", teacher=world / "base"))
    assert code == 2 and "--teacher: expected CLIP on crops, CropCLIP, got LPOVOD" in error


def test_an_export_has_the_published_keys(command, tmp_path):
    options = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.CROP_REGION_TYPE", ""]
    model = build_model(load_config("configs/lp_ovod/coco_probe.yaml", options))
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    code, _, error = command("lp-ovod", "export", "model_final.pth", "vild_sigmoid_ft.pth")
    assert code == 0, error
    state = torch.load(tmp_path / "vild_sigmoid_ft.pth", weights_only=True)["state_dict"]
    assert {key: tuple(value.shape) for key, value in state.items()} == lp_ovod_shapes()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    code, _, error = command("lp-ovod", "export", "other.pth", "out.pth")
    assert code == 2 and "expected a detector of LP-OVOD, got keys such as weight" in error
    assert not (tmp_path / "out.pth").exists()


def test_probing_on_features_takes_the_published_steps():
    features, labels = (torch.from_numpy(UNITS[f"focal_probe/{key}"]) for key in ("features", "labels17"))
    settings = ProbeSettings(epochs=5, milestones=(), images_per_batch=1, warmup=0)
    weights = probe([ImageRegions(features, labels)], 17, settings)
    expected = torch.from_numpy(UNITS["focal_probe/sgd_weights_sum"])
    torch.testing.assert_close(weights.sum(dim=1).double(), expected, atol=1e-5, rtol=1e-5)
