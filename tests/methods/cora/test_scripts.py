"""The published command lines of CORA's localizer."""

import shlex
import subprocess

import pytest

from regionclip.config.loading import load_config
from tests.helpers.paths import REPOSITORY

SCRIPTS = {
    "R50_dab_ovd_3enc_apm128_splcls0.2_relabel_noinit.sh": ("RN50", "coco_rn50"),
    "R50x4_dab_ovd_3enc_apm128_splcls0.2_relabel_noinit.sh": ("RN50x4", "coco_rn50x4"),
}


@pytest.fixture
def calls(tmp_path):
    """Return the command lines that a script calls Python with, and its exit code."""
    recorder = tmp_path / "python"
    recorder.write_text(f'#!/usr/bin/env bash\necho "$(printf "%q " "$@")" >> {tmp_path / "calls"}\n')
    recorder.chmod(0o755)

    def call(script, *arguments):
        command = ["bash", str(REPOSITORY / "configs" / "COCO" / script), *arguments]
        environment = {"PYTHON": str(recorder), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, [shlex.split(line) for line in lines]

    return call


def settings(arguments):
    start = next(
        i
        for i, argument in enumerate(arguments)
        if (argument.isupper() and "." in argument) or argument == "OUTPUT_DIR"
    )
    config = arguments[arguments.index("--config-file") + 1]
    return load_config(config, arguments[start:]), arguments[:start]


@pytest.mark.parametrize(("script", "size"), SCRIPTS.items())
def test_evaluation(script, size, calls):
    done, (*embedded, last) = calls(script, "test", "8", "local", "--resume", "cora.pth", "--eval")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(last)
    assert flags[:3] == ["./tools/train_net.py", "--num-gpus", "8"]
    assert "--eval-only" in flags and "--resume" not in flags
    assert f"configs/cora/{size[1]}.yaml" in flags
    assert cfg.MODEL.WEIGHTS == "cora.pth" and cfg.OUTPUT_DIR == "logs/test"
    assert (cfg.MODEL.CORA.NOVEL_FACTOR, cfg.MODEL.CORA.NOVEL_CLASSES, cfg.MODEL.CORA.CLIP_BOXES) == (
        8.0,
        "coco17",
        False,
    )
    assert [call[2:5] for call in embedded] == [["concepts", "--vocabulary", name] for name in ("coco48", "coco65")]
    assert all(size[0] in call and "cora.pth" in call for call in embedded)


@pytest.mark.parametrize(("script", "size"), SCRIPTS.items())
def test_training(script, size, calls):
    done, (*_, last) = calls(script, "run", "2", "local", "SOLVER.MAX_ITER", "7")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(last)
    assert "--resume" in flags and "--eval-only" not in flags
    assert cfg.SOLVER.MAX_ITER == 7
    assert cfg.MODEL.WEIGHTS.endswith(f"clip/{size[0]}.pt")
    assert f"logs/region_prompt_{size[0].replace('RN', 'R')}.pth" == cfg.MODEL.CORA.PROMPT_WEIGHTS
    assert (cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY, cfg.MODEL.CORA.SPLIT_PROBABILITY) == (True, 0.99996, 0.2)


def test_pseudo_boxes(calls, tmp_path):
    boxes = tmp_path / "pseudo.json"
    boxes.write_text("[]")
    script = next(iter(SCRIPTS))
    done, (*_, embedded, last) = calls(script, "run", "2", "local", "--pseudo_box", str(boxes))
    assert done.returncode == 0, done.stderr
    start = last.index("MODEL.CORA.PSEUDO_BOXES")
    embeddings = str(tmp_path / "pseudo_RN50.safetensors")
    assert last[start : start + 4] == [last[start], str(boxes), "MODEL.CORA.PSEUDO_EMBEDDINGS", embeddings]
    assert embedded[2:5] == ["concepts", "--vocabulary", str(tmp_path / "pseudo.txt")]
    assert embedded[-2:] == ["--output", embeddings]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", "8"), "expected NAME GPUS local"),
        (("test", "8", "partition"), "launcher 'partition': use local"),
        (("test", "8", "local", "--resume"), "--resume needs a file"),
        (("test", "8", "local", "--epochs", "3"), "option '--epochs': write KEY VALUE instead"),
    ],
)
def test_other_arguments_are_refused(arguments, message, calls):
    done, called = calls(next(iter(SCRIPTS)), *arguments)
    assert (done.returncode, called) == (2, [])
    assert message in done.stderr
