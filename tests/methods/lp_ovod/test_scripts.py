"""The published command lines of LP-OVOD."""

import shlex
import subprocess

import pytest

from regionclip.config.loading import load_config
from tests.helpers.paths import REPOSITORY


@pytest.fixture
def calls(tmp_path):
    """Return the command lines that a script calls Python with, and its exit code."""
    recorder = tmp_path / "python"
    recorder.write_text(f'#!/usr/bin/env bash\necho "$(printf "%q " "$@")" >> {tmp_path / "calls"}\n')
    recorder.chmod(0o755)

    def call(script, *arguments, **environment):
        command = ["bash", str(REPOSITORY / "scripts" / "lp_ovod" / script), *arguments]
        env = {"PYTHON": str(recorder), "PATH": "/usr/bin:/bin", **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, [shlex.split(line) for line in lines]

    return call


def settings(arguments):
    start = next(i for i, part in enumerate(arguments) if part.isupper() and "." in part and not part.startswith("./"))
    return load_config(arguments[arguments.index("--config-file") + 1], arguments[start:]), arguments[:start]


def test_base_training(calls):
    done, (call,) = calls("vild_sigmoid.sh", "SOLVER.MAX_ITER", "7")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(call)
    assert flags[:4] == ["./tools/train_net.py", "--resume", "--num-gpus", "8"]
    assert (cfg.MODEL.LP_OVOD.STAGE, cfg.MODEL.LP_OVOD.DISTILL_WEIGHT, cfg.SOLVER.MAX_ITER) == ("base", 256, 7)
    assert cfg.MODEL.WEIGHTS.endswith("soco_star_mask_rcnn_r50_fpn_400e.pth") and cfg.DATASETS.TEST == ()
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    assert (clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE) == (True, "full_model", 15)
    decay = cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM
    assert (cfg.SOLVER.BASE_LR, *decay, cfg.SOLVER.STEPS) == (0.02, 2.5e-5, 2.5e-5, (107760, 127965))


def test_linear_probing(calls):
    done, (call,) = calls("vild_sigmoid_ft.sh", "base.pth")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(call)
    assert "--resume" in flags and cfg.MODEL.WEIGHTS == "base.pth"
    assert (cfg.MODEL.LP_OVOD.STAGE, cfg.MODEL.ENSEMBLE.NEGATIVES_PER_POSITIVE) == ("probe", 10)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CLIP_GRADIENTS.ENABLED) == (0.001, 2, False)


def test_evaluation(calls, tmp_path):
    done, (*_, call) = calls("vild_sigmoid_test.sh", "probed.pth")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(call)
    assert "--eval-only" in flags and cfg.MODEL.WEIGHTS == "probed.pth"
    method, clip = cfg.MODEL.LP_OVOD, cfg.MODEL.CLIP
    assert (method.ALPHA, method.BETA, method.NOVEL_TEMPERATURE, clip.CLSS_TEMP) == (0, 0.8, 1, 0.01)
    assert (clip.CROP_REGION_TYPE, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST) == ("", 0.05)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "index.json").write_text("{}")
    done, (*_, call) = calls("vild_sigmoid_test.sh", "probed.pth", LP_OVOD_PROPOSALS=str(tmp_path / "val"))
    cfg, _ = settings(call)
    assert ("FILE", str(tmp_path / "val")) == (cfg.MODEL.CLIP.CROP_REGION_TYPE, cfg.MODEL.CLIP.PROPOSAL_FILE)


@pytest.mark.parametrize("script", ["vild_sigmoid_ft.sh", "vild_sigmoid_test.sh"])
def test_a_missing_checkpoint_is_one_error(script, calls):
    done, lines = calls(script)
    assert done.returncode == 2 and done.stderr.startswith("error: name the checkpoint") and not lines
