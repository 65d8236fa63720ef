"""Training loop of all detectors, on Detectron2's hooks, solver and state layout."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from regionclip.data.training_loader import Batch, read_training_data, training_batches, unreadable_images
from regionclip.engine.checkpoint.loading import load_weights, parts_with_weights, weight_files
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.engine.checkpoint.run import FINAL, RunCheckpoints
from regionclip.engine.evaluation.evaluate import evaluate, prepare_evaluation
from regionclip.engine.signals import Interrupted, StopSignals
from regionclip.engine.training.autocast import autocast_dtype
from regionclip.engine.training.averaging import WeightAverage
from regionclip.engine.training.hooks import Checkpoints, Evaluation, ResourceMetrics, SampleLog
from regionclip.engine.training.optimizer import make_optimizer
from regionclip.engine.training.state import (
    StepStart,
    best_of,
    best_value_of,
    gather_random_states,
    load_optimizer,
    recent_metrics,
    require_agreement,
    restore_metrics,
    restore_random_state_of_process,
    warn_of_changes,
)
from regionclip.engine.training.writers import PeriodicLines
from regionclip.errors import UserError, user_error
from regionclip.modeling.build import build_model
from regionclip.modeling.proposals.cache import flush_proposals

logger = logging.getLogger(__name__)


@dataclass
class TrainingReport:
    """Outcome of a run."""

    iterations: int = 0
    """Number of steps done, including those of earlier processes."""
    stopped_by: int | None = None
    """The signal that stopped it, None if it ran to the end."""
    weights: Path | None = None
    """Its newest checkpoint."""
    unreadable: list[str] = field(default_factory=list)
    """One line for each unreadable image."""


class DetectorTrainer(TrainerBase):
    """Trains the detector of a config; `tools/train_net.py` without `--eval-only`."""

    def __init__(self, cfg: CfgNode, *, trust_pickle: bool = False, allow_missing: Sequence[str] = ()) -> None:
        """Read the data and build model and optimizer of `cfg`; the options apply to loading the initial weights."""
        super().__init__()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.trust_pickle, self.allow_missing = trust_pickle, tuple(allow_missing)
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.data = read_training_data(cfg)
        self.model = self.build_model(cfg)
        self.optimizer = self.build_optimizer(cfg, self.model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.autocast = autocast_dtype(cfg, self.device)
        self.scaler = GradScaler(enabled=cfg.SOLVER.AMP.ENABLED and self.device.type == "cuda")
        ema = cfg.MODEL_EMA
        self.average = WeightAverage(self.model, ema.DECAY, warms_up=ema.WARMUP) if ema.ENABLED else None
        self.checkpoints = RunCheckpoints(cfg.OUTPUT_DIR)
        self.done = self.start_iter = 0
        self.max_iter, self.parts = cfg.SOLVER.MAX_ITER, cfg.SOLVER.GRADIENT_ACCUMULATION
        self.network: nn.Module = self.model
        self.batches: Iterator[Batch] = iter(())
        self.signals = StopSignals()
        self.stop_signal: int | None = None
        self.evaluated_now = self.resumed_at_evaluation = False
        self.best_value = -math.inf
        self.unreadable: dict[str, None] = {}
        self.images_of_step: list[Any] = []
        self._resumed: dict[str, Any] = {}
        self._resumed_from = ""
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the detector."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer of SOLVER.OPTIMIZER."""
        return make_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build Detectron2's scheduler."""
        return build_lr_scheduler(cfg, optimizer)

    def build_hooks(self) -> list[Any]:
        """Return the hooks in order; the last three run at the end of a step."""
        solver = self.cfg.SOLVER
        return [
            hooks.IterationTimer(warmup_iter=1),  # times every step, also the first ones after resuming
            hooks.LRScheduler(),
            ResourceMetrics(),
            SampleLog() if self.cfg.DATASETS.LOG_SAMPLES else None,
            Evaluation(self.cfg.TEST.EVAL_PERIOD, solver.BEST_CHECKPOINT_METRIC),
            PeriodicLines(),
            Checkpoints(solver.CHECKPOINT_PERIOD),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the newest checkpoint of OUTPUT_DIR, or load MODEL.WEIGHTS and BB_RPN_WEIGHTS.

        A resumed run keeps the RPN of its checkpoint.

        Raises:
            UserError: weights cannot be read, or do not cover the frozen parts.
        """
        newest = self.checkpoints.newest() if resume else None
        require_agreement(newest)
        if newest is not None:
            self._resume(newest)
            return
        load_weights(
            self.model,
            self.cfg.MODEL.WEIGHTS,
            weight_files(self.cfg),
            trust_pickle=self.trust_pickle,
            allow_missing=self.allow_missing,
            required=parts_with_weights(self.cfg, self.model),
        )

    def _resume(self, path: Path) -> None:
        content = read_checkpoint(str(path), trust_pickle=self.trust_pickle)
        if "trainer" not in content.extra:
            fix = "name it in MODEL.WEIGHTS, and start without --resume"
            actual = f"weights and {', '.join(content.extra)}" if content.extra else "weights only"
            raise user_error(str(path), "the state of a training run (Detectron2 0.5 or newer)", actual, fix)
        allowed = () if "run" in content.extra else ("",)
        load_weights(self.model, str(path), trust_pickle=self.trust_pickle, allow_missing=allowed, averaged=False)
        self._resumed_from = path.name
        self.load_state_dict(content.extra["trainer"])
        self.start_iter = self.iter + 1
        run = content.extra.get("run")
        if run is None:
            logger.warning("%s is of Detectron2: random states and data order start again", path)
            return
        self._resumed = run
        self.seed, self.best_value = run["seed"], best_value_of(run, self.cfg)
        self.unreadable = dict.fromkeys(run["unreadable"])
        self.resumed_at_evaluation = not run["evaluated"]
        warn_of_changes(run, self.cfg)
        if self.average and "average" in run:
            self.average.load_state_dict(run["average"])

    def train(self) -> TrainingReport:
        """Train to SOLVER.MAX_ITER, or to the first SIGTERM or Ctrl-C, after which `--resume` continues."""
        if comm.get_world_size() > 1:
            gpu = [comm.get_local_rank()] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=gpu, broadcast_buffers=False)
        if self.average and "average" not in self._resumed:
            self.average.restart()  # with the initial weights, which all processes now have of the first
        self.model.train()
        self.done = self.iter = self.start_iter
        with StopSignals() as self.signals, EventStorage(self.start_iter) as self.storage:
            self._begin()
            try:
                self._run_steps()
            except Interrupted:
                # The state was saved before any work that may be aborted at any point.
                self.stop_signal = self.signals.received or signal.SIGTERM
            finally:
                self.batches = iter(())  # ends the workers
                self.after_train()
        return TrainingReport(
            iterations=self.done,
            stopped_by=self.stop_signal,
            weights=self.checkpoints.folder / self.checkpoints.newest_name(),
            unreadable=list(self.unreadable),
        )

    def _begin(self) -> None:
        if comm.is_main_process():
            self.checkpoints.remove_partial()
            if not self.start_iter:
                self.checkpoints.restart()
            first_line = self.start_iter - self.resumed_at_evaluation
            for hook in self._hooks:
                if isinstance(hook, PeriodicLines):
                    hook.open(self.cfg.OUTPUT_DIR, first_line, self.max_iter)
                if isinstance(hook, SampleLog):
                    hook.open(self.cfg.OUTPUT_DIR, self.start_iter)
        self.batches = training_batches(self.cfg, self.data, self.seed, self.start_iter)
        if self._resumed:
            restore_random_state_of_process(self._resumed["random"], self.seed, self.start_iter)
            restore_metrics(self.storage, self._resumed["metrics"])
        self.before_train()

    def _run_steps(self) -> None:
        if self.resumed_at_evaluation:
            self._finish_step(self.start_iter - 1)
        elif self.start_iter >= self.max_iter and self._resumed_from != f"{FINAL}.pth":
            self.iter = self.storage.iter = self.start_iter - 1
            self.save_final()  # an earlier process was killed before it was saved, or the file is damaged
        for iteration in range(self.start_iter, self.max_iter):
            self.iter = iteration
            self.before_step()
            self.run_step()
            self.done = self.iter + 1
            self.after_step()
            if self.stop_signal is not None:
                break

    def _finish_step(self, iteration: int) -> None:
        """Complete the work after a step that an interruption of its evaluation left undone."""
        self.iter = self.storage.iter = iteration
        for hook in self._hooks[-3:]:
            hook.after_step()
        self.resumed_at_evaluation = False

    def run_step(self) -> None:
        """Run one optimization step.

        Raises:
            UserError: the loss is not finite; the state before the step has been saved.
        """
        start = time.perf_counter()
        batch = next(self.batches)
        data_time = time.perf_counter() - start
        before = StepStart(self.model)
        try:
            self.optimizer.zero_grad()
            mean_losses = self._accumulate_gradients(batch)
        except FloatingPointError as error:  # the RPN checks its boxes
            if comm.get_world_size() > 1:
                # Without saving a checkpoint: the other processes wait for gradients.
                raise self._diverged([str(error)], [image["file_name"] for image in batch]) from error
            mean_losses = {str(error): math.nan}
        self._share(batch, mean_losses, data_time, before)
        self.scaler.unscale_(self.optimizer)  # a fused optimizer would clip scaled gradients
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.iter)

    def _accumulate_gradients(self, batch: Batch) -> dict[str, float]:
        """Process a batch in SOLVER.GRADIENT_ACCUMULATION chunks; return the means of their losses."""
        parts = [batch[i :: self.parts] for i in range(self.parts)]
        mean_losses: dict[str, float] = {}
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            is_shared = isinstance(self.network, DistributedDataParallel) and not last
            with cast(DistributedDataParallel, self.network).no_sync() if is_shared else nullcontext():
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    losses = self.network(part)
                self.scaler.scale(sum(losses.values()) * (len(part) / len(batch))).backward()
            for name, loss in losses.items():
                mean_losses[name] = mean_losses.get(name, 0.0) + loss.item() * len(part) / len(batch)
        return mean_losses

    def _share(self, batch: Batch, mean_losses: dict[str, float], data_time: float, before: StepStart) -> None:
        """Gather the step's results from all processes: losses, unreadable images, stop requests."""
        diverged = [image["file_name"] for image in batch] if not math.isfinite(sum(mean_losses.values())) else []
        everywhere = comm.all_gather(
            {
                "losses": mean_losses,
                "data_time": data_time,
                "unreadable": unreadable_images(batch),
                "diverged": diverged,
                "images": [image["image_id"] for image in batch] if self.cfg.DATASETS.LOG_SAMPLES else [],
                "stop": self.signals.received,
            }
        )
        self._note_unreadable([line for process in everywhere for line in process["unreadable"]])
        images = [name for process in everywhere for name in process["diverged"]]
        if images:
            self._stop_diverged(images, [process["losses"] for process in everywhere], before)
        self.stop_signal = next((process["stop"] for process in everywhere if process["stop"]), None)
        self.images_of_step = [name for process in everywhere for name in process["images"]]
        means = {name: sum(p["losses"][name] for p in everywhere) / len(everywhere) for name in mean_losses}
        self.storage.put_scalar("data_time", max(process["data_time"] for process in everywhere))
        self.storage.put_scalars(total_loss=sum(means.values()), **means)

    def _note_unreadable(self, lines: list[str]) -> None:
        for line in lines:
            if line not in self.unreadable:
                logger.warning("Replaced unreadable image %s", line)
                self.unreadable[line] = None

    def _stop_diverged(self, images: list[str], mean_losses: list[dict[str, float]], before: StepStart) -> None:
        before.restore_norms()
        is_sound = all(torch.isfinite(v).all() for v in self.model.state_dict().values() if v.is_floating_point())
        saved = ""
        if self.iter and all(comm.all_gather(bool(is_sound))):
            self.iter -= 1
            path = self.save_state(f"model_{self.iter:07d}", states=before.random_states)
            saved = f"; the state before this step is in {path}"
        bad = {
            f"{name}={value:g}"
            for process in mean_losses
            for name, value in process.items()
            if not math.isfinite(value)
        }
        raise self._diverged(sorted(bad), images, saved)

    def _diverged(self, losses: list[str], images: list[str], saved: str = "") -> UserError:
        actual = f"{', '.join(losses)} for {', '.join(images)}"
        fix = "lower SOLVER.BASE_LR or clip gradients, and look at these images and their annotations"
        return user_error(f"loss of iteration {self.done + 1}", "a finite number", actual, fix + saved)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the weights, or their average, on DATASETS.TEST; a signal aborts it."""
        with self.signals.at_once(), self.average.in_place() if self.average else nullcontext():
            return self.test(self.cfg, self.model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Return the metrics of a model by task, nested by dataset name if there are several datasets."""
        if not cfg.DATASETS.TEST:
            return {}
        metrics = {name: report.metrics for name, report in evaluate(cfg, model, prepare_evaluation(cfg)).items()}
        return next(iter(metrics.values())) if len(metrics) == 1 else metrics

    def save_state(
        self, name: str, *, temporary: bool = False, evaluated: bool = True, states: dict[str, Any] | None = None
    ) -> Path:
        """Save everything that a resumed run needs; called by all processes, written by the main one.

        Args:
            name: file name without extension.
            temporary: remove it once the next one is complete.
            evaluated: whether the evaluation due after this step is done.
            states: random states of this process; None takes the current ones.
        """
        flush_proposals(self.model)
        random = gather_random_states(states)
        path = self.checkpoints.folder / f"{name}.pth"
        if comm.is_main_process():
            run = {
                "seed": self.seed,
                "images_per_batch": self.cfg.SOLVER.IMS_PER_BATCH,
                "random": random,
                "metrics": recent_metrics(self.storage),
                "best_value": self.best_value,
                "best_of": best_of(self.cfg),
                "initial_weights": self._resumed.get("initial_weights", self.cfg.MODEL.WEIGHTS),
                "evaluated": evaluated,
                "unreadable": list(self.unreadable),
            }
            if self.average:
                run["average"] = self.average.state_dict()
            content = {"model": self.model.state_dict(), "trainer": self.state_dict(), "run": run}
            self.checkpoints.save(name, {**content, "iteration": self.iter}, temporary=temporary)
        return path

    def save_final(self) -> None:
        """Save the result: the averaged weights, then the state, whose presence marks completion."""
        if self.average and comm.is_main_process():
            self.save_weights("model_final_ema")
        self.save_state(FINAL)

    def save_weights(self, name: str) -> Path:
        """Save the weights, or their average, for use as MODEL.WEIGHTS."""
        with self.average.in_place() if self.average else nullcontext():
            return self.checkpoints.save_weights(name, self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks, optimizer and scaler in Detectron2's layout."""
        inner = {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}
        return {**super().state_dict(), "_trainer": {**inner, "grad_scaler": self.scaler.state_dict()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; learning rate, weight decay and momentum stay those of the config."""
        super().load_state_dict(state)
        load_optimizer(self.optimizer, self.scheduler, state["_trainer"]["optimizer"], self.max_iter)
        if state["_trainer"].get("grad_scaler"):
            self.scaler.load_state_dict(state["_trainer"]["grad_scaler"])
