"""Hooks of the training loop: metrics, evaluation, checkpoints."""

from __future__ import annotations

import json
import logging
import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from regionclip.engine.checkpoint.run import BEST
from regionclip.engine.training.writers import keep_lines

if TYPE_CHECKING:
    from regionclip.engine.training.trainer import DetectorTrainer

logger = logging.getLogger(__name__)


class ResourceMetrics(HookBase):
    """Throughput over all processes and peak memory of this one."""

    trainer: DetectorTrainer

    def after_step(self) -> None:
        """Log `images_per_second` and `max_memory_gb`."""
        storage = self.trainer.storage
        if "time" in storage.histories():
            speed = self.trainer.cfg.SOLVER.IMS_PER_BATCH / storage.history("time").latest()
            storage.put_scalar("images_per_second", speed)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            used = torch.cuda.max_memory_allocated()
        else:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        storage.put_scalar("max_memory_gb", used / 1e9, smoothing_hint=False)


class SampleLog(HookBase):
    """Logs the images of each step, one JSON line per step (DATASETS.LOG_SAMPLES)."""

    trainer: DetectorTrainer

    def __init__(self) -> None:
        """Create a hook that writes nothing before `open`."""
        self.file: TextIO | None = None

    def open(self, folder: str | Path, start: int) -> None:
        """Open the file of a run that starts at iteration `start`; later lines are removed."""
        path = Path(folder, "samples.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            keep_lines(path, start - 1)
        self.file = path.open("a")

    def after_step(self) -> None:
        """Write one line."""
        if self.file is not None:
            line = {"iteration": self.trainer.iter, "images": self.trainer.images_of_step}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def after_train(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


class Evaluation(HookBase):
    """Evaluates every TEST.EVAL_PERIOD iterations and after the last, and saves the best weights."""

    trainer: DetectorTrainer

    def __init__(self, period: int, best_metric: str) -> None:
        """Create a hook; period 0 evaluates at the end only, `best_metric` is such as `bbox/AP50`."""
        self.period = period
        self.best_metric = best_metric

    def after_step(self) -> None:
        """Evaluate if due; the state is saved before, so that an interruption loses nothing."""
        trainer = self.trainer
        last = trainer.iter + 1 >= trainer.max_iter
        periodic = self.period > 0 and (trainer.iter + 1) % self.period == 0
        if not trainer.cfg.DATASETS.TEST or not (last or periodic):
            return
        if not trainer.resumed_at_evaluation:
            trainer.save_state(f"model_{trainer.iter:07d}_before_evaluation", temporary=True, evaluated=False)
        metrics = trainer.evaluate()
        if comm.is_main_process():
            flat_metrics = flatten_results_dict(metrics)
            known = {name: value for name, value in flat_metrics.items() if math.isfinite(value)}  # JSON has no NaN
            trainer.storage.put_scalars(**known, smoothing_hint=False)
            self._keep_best(flat_metrics)
        trainer.evaluated_now = True

    def _keep_best(self, flat_metrics: dict[str, float]) -> None:
        trainer, name = self.trainer, self.best_metric
        if not name:
            return
        if name not in flat_metrics:
            known = ", ".join(sorted(metric for metric in flat_metrics if "/AP-" not in metric))
            logger.error("SOLVER.BEST_CHECKPOINT_METRIC %s is none of: %s", name, known)
            return
        value = flat_metrics[name]
        if value > trainer.best_value:  # False for NaN
            trainer.best_value = value
            path = trainer.save_weights(BEST)
            logger.info("Best %s so far, %.3f: saved to %s", name, value, path)


class Checkpoints(HookBase):
    """Saves the state every SOLVER.CHECKPOINT_PERIOD iterations, after the last, and when the run is stopped."""

    trainer: DetectorTrainer

    def __init__(self, period: int) -> None:
        """Create a hook that saves every `period` iterations."""
        self.period = period

    def after_step(self) -> None:
        """Save if due."""
        trainer = self.trainer
        name, last = f"model_{trainer.iter:07d}", trainer.iter + 1 >= trainer.max_iter
        if (trainer.iter + 1) % self.period == 0:
            trainer.save_state(name)
        elif (trainer.stop_signal is not None or trainer.evaluated_now) and not last:
            trainer.save_state(name, temporary=True)
        if last:
            trainer.save_final()
        trainer.evaluated_now = False
