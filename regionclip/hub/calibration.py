"""Scores of a packed detector as its evaluation calibrated them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from regionclip.errors import user_error
from regionclip.files import read_json_file
from regionclip.hub.pretrained import Pretrained
from regionclip.modeling.detector import require_detector
from regionclip.modeling.score_scale import calibrated

KEYS = ("temperature", "best_temperature", "threshold_of_highest_f1")

BIASES = {"bias": 0.0, "best_bias": 0.0}
"""Keys that files of earlier releases lack, and what they meant."""


def read_calibration(path: Path, weights: str) -> dict[str, float]:
    """Return the `calibration.json` that an evaluation wrote next to its page.

    Args:
        path: the file.
        weights: hash of the backbone to calibrate, `engine.checkpoint.reading.backbone_hash`; empty if unknown.

    Raises:
        UserError: another file, an evaluation in which no detection was right, or each, or one of other weights.
    """
    content = read_json_file(path)
    values = BIASES | (content or {})
    missing = [key for key in (*KEYS, *BIASES) if not isinstance(values.get(key), float | int)]
    if missing:
        actual = "no such file" if content is None else f"no {', '.join(missing)}"
        fix = "name the calibration.json of an evaluation with right and wrong detections (`regionclip eval`)"
        raise user_error(str(path), f"a calibration, with {', '.join(KEYS)}", actual, fix)
    assert content is not None
    measured = content.get("weights")
    if measured and weights and measured != weights:
        fix = "evaluate the weights that you pack (`regionclip eval`)"
        raise user_error(str(path), f"a calibration of weights {weights}", f"one of {measured}", fix)
    return {key: float(values[key]) for key in (*KEYS, *BIASES)}


def with_calibration(detector: Pretrained, calibration: dict[str, float]) -> Pretrained:
    """Return a detector whose config has the fitted temperature and bias, and the threshold of the highest F1.

    Keys: SCORE_TEMPERATURE, SCORE_BIAS, and SCORE_THRESH_TEST on the detector's own scale.

    Raises:
        UserError: with MODEL.CLIP.VIS, since the threshold of a config is one of fused scores, not of those reported.
    """
    if detector.cfg.MODEL.CLIP.VIS:
        fix = "evaluate and pack with --set MODEL.CLIP.VIS=False"
        raise user_error("MODEL.CLIP.VIS", "False with a calibration", "True", fix)
    scale = require_detector(detector.model).score_scale
    measured = calibrated(scale, calibration["temperature"], calibration["bias"])
    cfg = detector.cfg.clone()
    cfg.defrost()
    cfg.MODEL.CLIP.SCORE_TEMPERATURE, cfg.MODEL.CLIP.SCORE_BIAS = (
        calibration["best_temperature"],
        calibration["best_bias"],
    )
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = measured.own(calibration["threshold_of_highest_f1"])
    cfg.freeze()
    return replace(detector, cfg=cfg)
