"""The published command lines of LP-OVOD."""

import pytest

from tests.helpers.scripts import settings


@pytest.fixture
def calls(recorded):
    """Return the command lines that a script of LP-OVOD calls Python with, and its exit code."""
    return lambda script, *arguments, **environment: recorded(f"scripts/lp_ovod/{script}", *arguments, **environment)


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
