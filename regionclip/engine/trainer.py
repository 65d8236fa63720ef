"""Detectron2's trainer on this project's models, data, evaluators and checkpoints."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from torch import nn

from regionclip.engine.checkpoint import DetectorCheckpointer, load_weights
from regionclip.engine.evaluate import evaluate, prepare_evaluation
from regionclip.modeling import build_model


class DetectorTrainer(DefaultTrainer):
    """Trains the detector of a config; `tools/train_net.py` without `--eval-only`."""

    checkpointer: DetectorCheckpointer

    def __init__(self, cfg: CfgNode, *, trust_pickle: bool = False, allow_missing: Sequence[str] = ()) -> None:
        """Build model, data and optimizer of `cfg`; the options concern the weights to start from."""
        super().__init__(cfg)
        self.trust_pickle = trust_pickle
        self.allow_missing = tuple(allow_missing)
        self.checkpointer = DetectorCheckpointer(
            self.checkpointer.model, cfg.OUTPUT_DIR, trust_pickle=trust_pickle, trainer=weakref.proxy(self)
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of OUTPUT_DIR, or load MODEL.WEIGHTS and BB_RPN_WEIGHTS.

        A resumed run keeps the proposer of its checkpoint.
        """
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=True)
            self.start_iter = self.iter + 1
            return
        clip = self.cfg.MODEL.CLIP
        # New heads are trained from scratch; the proposer is frozen, and a backbone that was named is wanted.
        required = ("offline_", "backbone.") if self.cfg.MODEL.WEIGHTS else ("offline_",)
        load_weights(
            self.checkpointer.model,
            self.cfg.MODEL.WEIGHTS,
            clip.BB_RPN_WEIGHTS if clip.CROP_REGION_TYPE == "RPN" else None,
            trust_pickle=self.trust_pickle,
            allow_missing=self.allow_missing,
            required=required,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the detector."""
        return build_model(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate during training: metrics by task, below the dataset name when there are several."""
        if not cfg.DATASETS.TEST:
            return {}
        metrics = {name: report.metrics for name, report in evaluate(cfg, model, prepare_evaluation(cfg)).items()}
        return next(iter(metrics.values())) if len(metrics) == 1 else metrics
