"""Several processes: the same training as one, started in any of three ways."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.data.datasets.coco_split import BASE_CATEGORIES
from regionclip.data.datasets.registrations import Registrations
from regionclip.data.test_loader import TestMapper
from regionclip.engine.distributed import Place, first_machine, free_port, join, place_from_environment
from regionclip.errors import UserError
from tests.helpers.detectors import flat
from tests.helpers.paths import REPOSITORY
from tests.helpers.training import (
    CONFIG,
    differing,
    final_state,
    train,
    train_in_processes,
    training_config,
    write_images,
)

SAME_SIZE = {
    "INPUT__MIN_SIZE_TRAIN": "(64,)",
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 8,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__MAX_ITER": 5,
}
"""Images of one size are not padded, and all have as many regions: a batch is the mean of its parts."""


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    write_images(tmp_path / "world")
    alone = train_in_processes(1, tmp_path / "world", tmp_path / "one", **SAME_SIZE)
    together = train_in_processes(2, tmp_path / "world", tmp_path / "two", **SAME_SIZE)
    assert set(alone) == {"total_loss", "loss_cls", "loss_box_reg"}
    for name, losses in alone.items():
        assert len(losses) == 5
        assert losses == pytest.approx(together[name], abs=1e-6, rel=1e-6), name
    weights, others = (final_state(tmp_path / output)["model"] for output in ("one", "two"))
    for key, value in weights.items():
        torch.testing.assert_close(value, others[key], atol=1e-5, rtol=1e-4, msg=key)


def threads():
    return sorted(file.read_text() for file in Path("/proc/self/task").glob("*/comm"))


def count_threads(rank, port, file):
    seen = []
    join(Place(rank, 2, rank, 2, f"tcp://127.0.0.1:{port}"), lambda: seen.append(threads()), on_gpu=False)
    if rank == 0:
        file.write_text(json.dumps([*seen, threads()]))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_processes_that_have_parted_keep_no_threads(tmp_path):
    # Python sometimes crashed at its end, when threads of gloo were still there.
    torch.multiprocessing.spawn(count_threads, (free_port(), tmp_path / "threads.json"), nprocs=2)
    meanwhile, after = json.loads((tmp_path / "threads.json").read_text())
    assert [name for name in meanwhile if "gloo" in name]
    assert not [name for name in after if "gloo" in name]


def test_evaluation_in_two_processes_gives_the_same_results(tmp_path):
    write_images(tmp_path / "world", count=7)
    # Nothing is learned, so that both evaluate the same bits.
    still = SAME_SIZE | {"SOLVER__BASE_LR": 0.0, "SOLVER__MAX_ITER": 1}
    for count in (1, 2):
        train_in_processes(count, tmp_path / "world", tmp_path / str(count), **still)
    results = [
        (tmp_path / output / "inference" / name).read_text()
        for name in ("coco_instances_results.json", "metrics.json")
        for output in ("1", "2")
    ]
    detections = json.loads(results[0])
    assert len(detections) > 20
    assert results[0] == results[1]
    assert results[2] == results[3]


def evaluate_and_stop(rank, port, folder, output):
    """Train one step, then evaluate; the second process gets its signal two images later than the first, if at all."""
    torch.set_num_threads(1)
    place = Place(rank, 2, rank, 2, f"tcp://127.0.0.1:{port}")
    read, seen = TestMapper.__call__, []

    def read_and_stop(mapper, record):
        seen.append(record)
        if len(seen) == 2 + 2 * rank:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # the processes keep step
        return read(mapper, record)

    TestMapper.__call__ = read_and_stop
    join(place, lambda: train(folder, output, **SAME_SIZE | {"SOLVER__MAX_ITER": 1}), on_gpu=False)


def test_a_signal_that_comes_late_to_one_process_ends_the_evaluation_of_all(tmp_path):
    write_images(tmp_path / "world", count=24)
    context, port = multiprocessing.get_context("forkserver"), free_port()
    arguments = [(rank, port, str(tmp_path / "world"), str(tmp_path / "out")) for rank in (0, 1)]
    processes = [context.Process(target=evaluate_and_stop, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    (newest,) = json.loads((tmp_path / "out" / "checkpoints.json").read_text())
    assert newest["file"] == "model_0000000_before_evaluation.pth"


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (TORCHRUN, Place(5, 8, 1, 4, "env://")),
        (SRUN, Place(5, 8, 1, 4, "tcp://gpu07:23456")),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, not a task
    ],
)
def test_the_place_is_the_one_that_the_launcher_gave(environment, place):
    assert place_from_environment(environment) == place


def test_uneven_tasks_are_refused():
    with pytest.raises(UserError, match="as many tasks on each machine"):
        place_from_environment(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4,3"})


@pytest.mark.parametrize(
    ("machines", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("rack1-gpu[3,5]-ib", "rack1-gpu3-ib"),
        ("a,b[1-2]", "a"),
    ],
)
def test_the_first_machine_is_where_processes_meet(machines, first):
    assert first_machine(machines) == first


@pytest.fixture
def command(tmp_path):
    """Return the command line of a short training on images instead of open-vocabulary COCO."""
    content = write_images(tmp_path / "world")
    coco = tmp_path / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    (tmp_path / "world" / "images").rename(coco / "train2017")
    (coco / "val2017").symlink_to(coco / "train2017")
    content["categories"] = [{"id": i, "name": name} for i, name in BASE_CATEGORIES.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 1, 3: 3, 18: 4}[annotation["category_id"]]
    for name in ("ovd_ins_train2017_b", "ovd_ins_val2017_b"):
        (coco / "annotations" / f"{name}.json").write_text(json.dumps(content))
    torch.save(torch.randn(48, 32), tmp_path / "embeddings.pth")
    (tmp_path / "world" / "images").symlink_to(coco / "train2017")
    cfg = training_config(tmp_path / "world", tmp_path / "out")
    keys = (
        "MODEL.CLIP.ARCHITECTURE",
        "MODEL.CLIP.OFFLINE_RPN_CONFIG",
        "MODEL.CLIP.TEXT_EMB_DIM",
        "INPUT.MIN_SIZE_TRAIN",
    )
    keys += (
        "INPUT.MIN_SIZE_TRAIN",
        "INPUT.MIN_SIZE_TEST",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "SOLVER.IMS_PER_BATCH",
        "SOLVER.STEPS",
    )
    keys += ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "OUTPUT_DIR", "SEED", "MODEL.CLIP.CROP_REGION_TYPE")
    overrides = {}
    for key in keys:
        node = cfg
        for part in key.split("."):
            node = node[part]
        overrides[key] = str(node)
    overrides |= {
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.TEXT_EMB_PATH": str(tmp_path / "embeddings.pth"),
        "DATASETS.TEST": "('coco_2017_ovd_b_test',)",
        "DATALOADER.NUM_WORKERS": "1",
        "SOLVER.MAX_ITER": "6",
    }

    def make(*arguments, start=(sys.executable,), **changed):
        options = overrides | {key.replace("__", "."): str(value) for key, value in changed.items()}
        script = [str(REPOSITORY / "tools" / "train_net.py"), "--config-file", CONFIG, "--allow-missing", "offline_"]
        environment = os.environ | {
            "DETECTRON2_DATASETS": str(tmp_path / "datasets"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        command_line = [*start, *script, *arguments, *flat(options)]
        return {"args": command_line, "env": environment, "cwd": REPOSITORY}

    return make


def run(command):
    done = subprocess.run(**command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_and_num_gpus_start_the_same_run(command, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    code, output = run(command(start=torchrun, OUTPUT_DIR=tmp_path / "torchrun"))
    assert code == 0, output
    code, output = run(command("--num-gpus", "2", "--dist-url", "auto", OUTPUT_DIR=tmp_path / "launched"))
    assert code == 0, output
    assert output.count("Done: 6 of 6 iterations, 0 images unreadable") == 1
    assert f"--eval-only --config-file {CONFIG}" in output
    assert f"MODEL.WEIGHTS {tmp_path}/launched/model_final.pth" in output
    states = [final_state(tmp_path / name)["model"] for name in ("torchrun", "launched")]
    assert differing(*states) == []


OWN_SCRIPT = """
import runpy
from detectron2.data import DatasetCatalog

records = [{"file_name": "a.png", "image_id": 1}]
DatasetCatalog.register("own_data", lambda: records)
if __name__ == "__main__":
    runpy.run_path("tool.py", run_name="__main__")
"""
TOOL = """
import argparse
from pathlib import Path
import torch.distributed as dist
from detectron2.data import DatasetCatalog
from regionclip.engine.distributed import launch

def work(args):
    # A file each: the lines of two processes may run into each other on one stream.
    Path(f"{dist.get_rank()}.txt").write_text(str(DatasetCatalog.get("own_data")))

if __name__ == "__main__":
    launch(work, argparse.Namespace(num_machines=1, machine_rank=0, dist_url="auto"), processes=2, on_gpu=False)
"""


def test_datasets_that_a_script_registers_reach_every_process(tmp_path):
    # As in docs/training.md: a script registers, and runs the tool that starts processes.
    (tmp_path / "own.py").write_text(OWN_SCRIPT)
    (tmp_path / "tool.py").write_text(TOOL)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    code, output = run({"args": [sys.executable, "own.py"], "env": environment, "cwd": tmp_path})
    assert code == 0, output
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert told == ["[{'file_name': 'a.png', 'image_id': 1}]"] * 2


def test_registrations_arrive_as_they_were():
    name, records = "tests_sent", [{"file_name": "a.png", "image_id": 1}]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["lamp"])
    try:
        sent = pickle.dumps(Registrations.of_this_process())
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        before = DatasetCatalog.list()
        pickle.loads(sent).install()
        assert DatasetCatalog.get(name) == records
        assert MetadataCatalog.get(name).thing_classes == ["lamp"]
        assert sorted(DatasetCatalog.list()) == sorted([*before, name])
    finally:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_a_function_that_cannot_be_sent_is_named(caplog):
    lock = threading.Lock()
    DatasetCatalog.register("tests_unsendable", lambda: lock)
    try:
        with caplog.at_level("WARNING", "regionclip"):
            assert "tests_unsendable" not in Registrations.of_this_process().functions
        assert "dataset tests_unsendable stays unknown to the other processes" in caplog.text
    finally:
        DatasetCatalog.remove("tests_unsendable")


@pytest.mark.slow
def test_a_batch_that_cannot_be_dealt_out_is_refused_once(command, tmp_path):
    code, output = run(command("--num-gpus", "2", "--dist-url", "auto", SOLVER__IMS_PER_BATCH=3))
    assert code == 2, output
    assert "error: SOLVER.IMS_PER_BATCH: expected a multiple of the 2 processes, got 3." in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_the_state_and_exits_with_0(command, tmp_path):
    steps = command("--num-gpus", "2", "--dist-url", "auto", SOLVER__MAX_ITER=100000, SOLVER__CHECKPOINT_PERIOD=3)
    with subprocess.Popen(**steps, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "checkpoints.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert output.count("Stopped by SIGTERM") == 1, output
    assert f"train_net.py --resume --config-file {CONFIG}" in output
    newest = (tmp_path / "out" / "last_checkpoint").read_text()
    assert f"state in {tmp_path}/out/{newest}" in output
    done = int(newest.removeprefix("model_").removesuffix(".pth")) + 1
    code, output = run(command("--resume", SOLVER__MAX_ITER=done + 2))
    assert code == 0, output
    assert "The run had 2 processes and now has 1" in output
    assert f"Done: {done + 2} of {done + 2} iterations" in output
