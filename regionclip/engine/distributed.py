"""Starting one process per GPU, or joining those that torchrun or SLURM has started."""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from regionclip.data.datasets.registrations import Registrations
from regionclip.errors import user_error

TIMEOUT = timedelta(minutes=30)
"""Timeout of a process that waits for the others."""

Work = Callable[[argparse.Namespace], None]


@dataclass(frozen=True)
class Place:
    """Rank of a process and the addresses of the process group."""

    rank: int
    world_size: int
    local_rank: int
    """Rank of the process on its machine, which is the index of its GPU."""
    local_size: int
    address: str
    """Init method of the process group: `tcp://host:port`, or `env://`."""


def launch(work: Work, args: argparse.Namespace, *, processes: int, on_gpu: bool) -> None:
    """Call `work(args)` in every process of the run.

    Under torchrun and under `srun` this process is one of them. Else `processes` are started on
    this machine, one of `--num-machines` that rendezvous at `--dist-url`.

    Args:
        work: ends with `sys.exit`.
        args: with upstream's `num_machines`, `machine_rank` and `dist_url`.
        processes: number of processes to start on this machine.
        on_gpu: use NCCL, with one GPU per process, instead of gloo.
    """
    place = place_from_environment(os.environ)
    if place is not None:
        join(place, lambda: work(args), on_gpu=on_gpu)
        return
    world_size = processes * args.num_machines
    if world_size == 1:
        work(args)
        return
    first, address = args.machine_rank * processes, args.dist_url
    if address == "auto":
        if args.num_machines > 1:
            fix = "use tcp://HOST:PORT of the first machine"
            raise user_error("--dist-url", "where the machines meet", "auto", fix)
        address = f"tcp://127.0.0.1:{free_port()}"
    places = [Place(first + i, world_size, i, processes, address) for i in range(processes)]
    _start(places, work, args, on_gpu)


def place_from_environment(environment: Mapping[str, str]) -> Place | None:
    """Return the ranks that torchrun or SLURM gave this process; None for a single process.

    Raises:
        UserError: unexpected SLURM variables.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, world_size, local_rank, local_size = (
            int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        return Place(rank, world_size, local_rank, local_size, "env://")
    # Set by srun for each task of a step; a batch script itself has no such variable.
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return None
    machines = environment["SLURM_STEP_NODELIST"]
    tasks_per_machine = re.fullmatch(r"(\d+)(\(x\d+\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
    if tasks_per_machine is None:
        actual = f"SLURM_STEP_TASKS_PER_NODE={environment['SLURM_STEP_TASKS_PER_NODE']}"
        raise user_error("srun", "as many tasks on each machine", actual, "use srun --ntasks-per-node")
    port = 20000 + int(environment["SLURM_JOB_ID"]) % 20000
    return Place(
        int(environment["SLURM_PROCID"]),
        tasks,
        int(environment["SLURM_LOCALID"]),
        int(tasks_per_machine[1]),
        f"tcp://{first_machine(machines)}:{port}",
    )


def first_machine(machines: str) -> str:
    """Return the first host of a SLURM node list: `gpu[07-09,12],login1` gives `gpu07`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", machines)
    if match is None:
        raise user_error("SLURM_STEP_NODELIST", "names of machines", repr(machines), "start with srun")
    return "".join(part for part in match.groups() if part)


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(places: list[Place], work: Work, args: argparse.Namespace, on_gpu: bool) -> None:
    """Start a process per place, forward SIGTERM to them, and exit with the code of the first that fails."""
    # Each process imports the tool, not the user's script that registered datasets and called it.
    arguments = (places, work, args, on_gpu, Registrations.of_this_process())
    context = start_processes(_process, args=arguments, nprocs=len(places), join=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in context.processes:
            os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        sys.exit(error.exit_code)


def _process(
    number: int,
    places: list[Place],
    work: Work,
    args: argparse.Namespace,
    on_gpu: bool,
    registrations: Registrations,
) -> None:
    registrations.install()
    join(places[number], lambda: work(args), on_gpu=on_gpu)


def join(place: Place, work: Callable[[], None], *, on_gpu: bool) -> None:
    """Run `work` as one of the processes of a group, with NCCL, or gloo on CPUs."""
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend, init_method=place.address, rank=place.rank, world_size=place.world_size, timeout=TIMEOUT
    )
    comm.create_local_process_group(place.local_size)
    try:
        comm.synchronize()
        work()
    finally:
        dist.destroy_process_group()
        _forget_groups()


def _forget_groups() -> None:
    """Drop Detectron2's cached process groups: their threads would outlive Python, which may then crash."""
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    gc.collect()
