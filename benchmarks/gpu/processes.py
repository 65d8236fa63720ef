"""Five training steps in two processes with gloo, and with NCCL, against one process."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

from gpu.step import Notes, Setting
from regionclip.engine.distributed import Place, free_port, join
from tests.helpers.training import note_losses, write_images

STEPS = {
    "INPUT__MIN_SIZE_TRAIN": "(64,)",
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 8,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__MAX_ITER": 5,
}
"""Images of one size are not padded, and all have equally many regions: a batch is the mean of its parts."""

RUNS = {"gloo, 2 processes": (2, False), "NCCL, 1 process": (1, True), "NCCL, 2 processes on one card": (2, True)}
"""Number of processes, and whether they use NCCL, which may reject two on one card."""


def work(setting: Setting, notes: Notes) -> None:
    """Record the largest difference of a loss from that of one process, or why a run failed."""
    folder = setting.scratch / "images"
    write_images(folder)
    alone = train(setting, folder, 1, through_nccl=False)
    notes["total loss of one process"] = alone["total_loss"]
    for name, (count, through_nccl) in RUNS.items():
        if through_nccl and setting.is_dry_run:
            continue
        try:
            losses = train(setting, folder, count, through_nccl=through_nccl)
        except RuntimeError as error:
            notes[name] = {"failed": str(error)}
            continue
        differences = [abs(a - b) for key in alone for a, b in zip(alone[key], losses[key], strict=True)]
        notes[name] = {"largest_difference": max(differences)}


def train(setting: Setting, folder: Path, count: int, *, through_nccl: bool) -> dict[str, list[float]]:
    """Train in processes on one device and return the losses of each step by name; raises `RuntimeError`."""
    context = multiprocessing.get_context("fork")  # CUDA is not initialized in this process
    output = setting.scratch / f"{count}{'nccl' if through_nccl else 'gloo'}"
    address = f"tcp://127.0.0.1:{free_port()}"
    options = {**STEPS, "MODEL__DEVICE": setting.device}
    processes = [
        context.Process(target=_train, args=(rank, count, address, folder, output, options, through_nccl))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}")
    return json.loads((output / "losses.json").read_text())


def _train(
    rank: int, count: int, address: str, folder: Path, output: Path, options: dict[str, Any], through_nccl: bool
) -> None:
    # All on the first card: the local rank of a process selects its card.
    place = Place(rank, count, 0, count, address)
    join(place, partial(note_losses, folder, output, options), on_gpu=through_nccl)
