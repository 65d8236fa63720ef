"""A run that is killed and resumed ends with the same bits as one that is not."""

import json
import logging
import os
import random
import shutil
import signal
import time

import pytest
import torch

from regionclip.engine.checkpoint.run import RunCheckpoints
from regionclip.errors import UserError
from tests.helpers.training import (
    differing,
    final_state,
    kill_after_a_checkpoint,
    logged,
    start_training,
    train,
    write_images,
)

SETTINGS = {
    "TEST__EVAL_PERIOD": 20,
    "MODEL_EMA__ENABLED": True,
    "DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER__REPEAT_THRESHOLD": 0.9,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    start = time.monotonic()
    process = start_training(world, output, **SETTINGS)
    process.join()
    assert process.exitcode == 0
    return output, time.monotonic() - start


def steady(state):
    """Leave out of a state what the clock decides."""
    metrics = state["run"]["metrics"]
    kept = {name: value for name, value in metrics.items() if "time" not in name and "second" not in name}
    kept.pop("max_memory_gb")
    return {**state, "run": {**state["run"], "metrics": kept}}


def assert_same_run(output, uninterrupted):
    assert differing(steady(final_state(output)), steady(final_state(uninterrupted))) == []
    assert logged(output) == logged(uninterrupted)
    assert [line["iteration"] for line in logged(output)] == [19, 39, 49]
    ema = torch.load(output / "model_final_ema.pth", weights_only=True)
    assert differing(ema, torch.load(uninterrupted / "model_final_ema.pth", weights_only=True)) == []


def copy_until(source, target, last):
    """Copy a run as it was when its checkpoint `last` was the newest."""
    shutil.copytree(source, target)
    entries = json.loads((target / "checkpoints.json").read_text())
    (target / "checkpoints.json").write_text(json.dumps([entry for entry in entries if entry["file"] <= last]))


def kill_after(process, seconds):
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def kill_while_writing(process, output, number):
    """Kill when the temporary file of the n-th checkpoint is seen."""
    seen = set()
    while process.is_alive():
        seen |= {path.name for path in output.glob(".*.pth.*.tmp")}
        if len(seen) >= number:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0.0002)
    return False


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(seed, world, uninterrupted, tmp_path):
    expected, duration = uninterrupted
    rng = random.Random(seed)
    for _ in range(3):
        kill_after(start_training(world, tmp_path, **SETTINGS), rng.uniform(0.3, duration))
    last = start_training(world, tmp_path, **SETTINGS)
    last.join()
    assert last.exitcode == 0
    assert_same_run(tmp_path, expected)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_checkpoints_ends_with_the_same_bits(world, uninterrupted, tmp_path):
    killed = [kill_while_writing(start_training(world, tmp_path, **SETTINGS), tmp_path, n) for n in (1, 2, 3)]
    assert killed[0]
    last = start_training(world, tmp_path, **SETTINGS)
    last.join()
    assert last.exitcode == 0
    assert_same_run(tmp_path, uninterrupted[0])
    assert not list(tmp_path.glob(".*.tmp"))


def test_sigterm_saves_the_state_and_the_run_goes_on_from_there(world, uninterrupted, tmp_path):
    process = start_training(world, tmp_path, **SETTINGS)
    while not (tmp_path / "checkpoints.json").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    assert not (tmp_path / "model_final.pth").exists()
    newest = torch.load(RunCheckpoints(tmp_path).newest(), weights_only=True)
    assert 7 <= newest["iteration"] < 49
    last = start_training(world, tmp_path, **SETTINGS)
    last.join()
    assert_same_run(tmp_path, uninterrupted[0])


def test_adam_is_resumed_with_the_same_bits_and_never_as_another_optimizer(world, tmp_path):
    settings = {"SOLVER__OPTIMIZER": "ADAMW", "SOLVER__MAX_ITER": 12, "SOLVER__BASE_LR": 0.001}
    train(world, tmp_path / "whole", **settings)
    kill_after_a_checkpoint(world, tmp_path / "killed", **settings)
    with pytest.raises(UserError, match=r"SOLVER.OPTIMIZER: expected the optimizer of the run"):
        train(world, tmp_path / "killed", **(settings | {"SOLVER__OPTIMIZER": "SGD"}))
    with pytest.raises(UserError, match=r"--resume: expected an optimizer with groups of \[.*\] parameters, got"):
        train(world, tmp_path / "killed", **settings, SOLVER__WEIGHT_DECAY_BIAS=0.0001)
    trainer, _ = train(world, tmp_path / "killed", **settings)
    assert trainer.start_iter >= 7
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert differing(steady(final_state(tmp_path / "killed")), steady(final_state(tmp_path / "whole"))) == []


def test_a_partial_checkpoint_falls_back_to_the_one_before_and_says_so(uninterrupted, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    checkpoints = RunCheckpoints(folder)
    newest = checkpoints.newest()
    assert newest.name == "model_final.pth"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        before = checkpoints.newest()
    assert before.name == "model_0000048.pth"
    assert "model_final.pth is damaged: falling back" in caplog.text
    flipped = bytearray(before.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    before.write_bytes(flipped)
    assert checkpoints.newest().name == "model_0000041.pth"
    for path in folder.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="expected a checkpoint that is complete, got 8 damaged"):
        checkpoints.newest()


def test_a_finished_run_has_nothing_left_to_do(world, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    _, report = train(world, tmp_path / "run", **SETTINGS)
    assert (report.iterations, report.stopped_by) == (50, None)
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_a_run_killed_between_its_last_files_writes_them(world, tmp_path):
    """50 steps, a state every 10: the last periodic state is that of the last step."""
    settings = SETTINGS | {"SOLVER__CHECKPOINT_PERIOD": 10}
    train(world, tmp_path / "whole", resume=False, **settings)
    for missing in (("model_final.pth", "model_final_ema.pth"), ("model_final.pth",)):
        shutil.copytree(tmp_path / "whole", tmp_path / "killed", dirs_exist_ok=True)
        for name in missing:
            (tmp_path / "killed" / name).unlink()
        entries = json.loads((tmp_path / "killed" / "checkpoints.json").read_text())[:-1]
        (tmp_path / "killed" / "checkpoints.json").write_text(json.dumps(entries))
        _, report = train(world, tmp_path / "killed", **settings)
        assert (report.iterations, report.weights.name) == (50, "model_final.pth")
        assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_run_killed_before_its_last_step_writes_the_same_lines(world, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    entries = json.loads((tmp_path / "run" / "checkpoints.json").read_text())[:-1]
    assert entries[-1]["file"] == "model_0000048.pth"
    (tmp_path / "run" / "checkpoints.json").write_text(json.dumps(entries))
    trainer, _ = train(world, tmp_path / "run", **SETTINGS)
    assert trainer.start_iter == 49
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_a_changed_learning_rate_counts_from_the_resumption_on(world, uninterrupted, tmp_path, caplog):
    copy_until(uninterrupted[0], tmp_path / "run", "model_0000034.pth")
    with caplog.at_level(logging.WARNING):
        trainer, _ = train(world, tmp_path / "run", **SETTINGS, SOLVER__BASE_LR=0.0005)
    assert "The base learning rate was 0.002 and is 0.0005 from now on" in caplog.text
    assert trainer.start_iter == 35
    rates = {iteration: rate for rate, iteration in trainer.storage.history("lr").values()}
    assert (rates[34], rates[35], rates[49]) == pytest.approx((0.002, 0.0005, 0.00005))


def test_other_initial_weights_of_a_resumed_run_are_not_read_and_it_says_so(world, uninterrupted, tmp_path, caplog):
    copy_until(uninterrupted[0], tmp_path / "run", "model_0000048.pth")
    with caplog.at_level(logging.WARNING):
        train(world, tmp_path / "run", **SETTINGS, MODEL__WEIGHTS="other.pth")
    assert f"The run in {tmp_path / 'run'} started from no weights: MODEL.WEIGHTS other.pth is not read" in caplog.text
    assert final_state(tmp_path / "run")["run"]["initial_weights"] == ""


def test_files_of_detectron2_are_resumed(world, uninterrupted, tmp_path):
    state = torch.load(uninterrupted[0] / "model_0000041.pth", weights_only=True)
    del state["run"]
    torch.save(state, tmp_path / "model_0000041.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000041.pth")
    trainer, report = train(world, tmp_path, **SETTINGS)
    assert (trainer.start_iter, report.iterations) == (42, 50)
    for name, value in trainer.average.average.items():
        # The average began at the weights of the file, not at those of a new model.
        assert (value - state["model"][name]).abs().max() < 0.01, name


def test_weights_alone_are_not_resumed(world, uninterrupted, tmp_path):
    shutil.copy(uninterrupted[0] / "model_final_ema.pth", tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(UserError, match=r"expected the state of a training run .*, got weights only"):
        train(world, tmp_path, **SETTINGS)
