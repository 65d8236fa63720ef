"""The published command lines of RALF."""

import pytest

from tests.helpers.scripts import settings

PROMPTS = "model.roi_head.prompt_path=iou_neg5_ens.pth"
TRAIN = ["configs/ralf/ral.py", "4", "--work-dir", "workdirs/ral", "--cfg-options", PROMPTS]
TEST = ["configs/ralf/raf.py", "workdirs/ral/epoch_20.pth", "4", "--eval", "segm", "--cfg-options", PROMPTS]


def test_training_with_negative_words(recorded):
    arguments = [*TRAIN, "model.roi_head.load_feature=True", "SOLVER.MAX_ITER", "7"]
    done, (call,) = recorded("tools/dist_train.sh", *arguments, RALF_REGIONS="regions")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(call)
    assert flags[:4] == ["./tools/train_net.py", "--resume", "--num-gpus", "4"]
    ral, clip = cfg.MODEL.RALF.RAL, cfg.MODEL.CLIP
    numbers = ral.LAMBDA_HARD, ral.LAMBDA_EASY, ral.MARGIN_HARD, ral.MARGIN_EASY, ral.WEIGHT_HARD, ral.WEIGHT_EASY
    assert ral.ENABLED and numbers == (1, 10, 0, 1, 1, 1) and ral.NUM_SAMPLES == 10
    assert (clip.TEXT_EMB_PATH, clip.OPENSET_TEST_TEXT_EMB_PATH) == ("iou_neg5_ens.pth",) * 2
    assert (cfg.OUTPUT_DIR, cfg.MODEL.RALF.REGIONS, cfg.SOLVER.MAX_ITER) == ("workdirs/ral", "regions", 7)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.MODEL.RALF.DISTILL_WEIGHT) == (0.02, 2.5e-5, 256)
    assert cfg.MODEL.ENSEMBLE.LOW_QUALITY_MATCHES and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED


def test_evaluation_with_concepts(recorded):
    done, (call,) = recorded("tools/dist_test.sh", *TEST, "model.roi_head.load_feature=False")
    assert done.returncode == 0, done.stderr
    cfg, flags = settings(call)
    assert "--eval-only" in flags and cfg.MODEL.WEIGHTS == "workdirs/ral/epoch_20.pth"
    raf = cfg.MODEL.RALF.RAF
    assert (raf.ENABLED, raf.TOPK, raf.FUSION, raf.OFFSET) == (True, 20, "scale", 0.25)
    assert (raf.BOX_SOURCE, raf.PIXEL_MODE, raf.EMBEDDING) == ("proposal", "detector", "crops")
    assert (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.0001, 300)
    assert cfg.MODEL.RALF.TEST_TEMPERATURE == 0.007 and pytest.approx(1 / 3) == cfg.MODEL.RALF.ENSEMBLE_EXPONENT


def test_the_last_epoch_is_our_final_checkpoint(recorded, tmp_path):
    (tmp_path / "model_final.pth").touch()
    arguments = ["configs/ralf/ral.py", str(tmp_path / "epoch_20.pth"), "1", "--eval", "bbox", "segm"]
    done, (call,) = recorded("tools/dist_test.sh", *arguments, "SOLVER.MAX_ITER", "7", "SEED", "-1")
    assert done.returncode == 0, done.stderr
    cfg, _ = settings(call)
    assert str(tmp_path / "model_final.pth") == cfg.MODEL.WEIGHTS and cfg.SOLVER.MAX_ITER == 7


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("dist_train.sh", ["configs/ralf/ral.py"], "name config and number of GPUs"),
        ("dist_test.sh", ["configs/ralf/raf.py", "epoch_20.pth"], "name config, checkpoint and number of GPUs"),
        ("dist_train.sh", [*TRAIN[:2], "--work-dir"], "name a folder after --work-dir"),
        ("dist_train.sh", ["configs/other.py", "1"], "unknown config configs/other.py"),
        ("dist_train.sh", [*TRAIN, "model.roi_head.other=1"], "unknown option model.roi_head.other=1"),
    ],
)
def test_bad_command_lines_are_one_error(recorded, script, arguments, message):
    done, lines = recorded(f"tools/{script}", *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and not lines
