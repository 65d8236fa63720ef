"""Folders of results belong to one run: results of other words can never be taken over."""

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from argparse import Namespace

import pytest
import torch
from PIL import Image

from regionclip import RegionCLIP
from regionclip.batch.detect import DetectOptions, detect
from regionclip.config.loading import load_config
from regionclip.data.image_listing import RESULTS_MARK
from regionclip.data.image_sources import find_images
from regionclip.engine import workflows
from regionclip.engine.features.extraction import ExtractionJob, extract_region_features
from regionclip.engine.ownership import LOCK_FILE, own_folder
from regionclip.errors import Problem, UserError, user_error
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.helpers.training import training_config, write_images

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
WORDS = (["cat", "dog"], ["tree", "cat", "house"])
OPTIONS = DetectOptions(threshold=0.0, topk=3)


@pytest.fixture(scope="module")
def detectors(detector_folder):
    """Two detectors, each with its words."""
    made = [RegionCLIP.from_pretrained(detector_folder, overrides=["INPUT.MIN_SIZE_TEST", "32"]) for _ in WORDS]
    for detector, words in zip(made, WORDS, strict=True):
        detector.set_vocabulary(words)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small images that differ."""
    folder = tmp_path_factory.mktemp("images")
    photo = Image.open(PHOTOS[0]).convert("RGB").resize((64, 48))
    for number in range(10):
        photo.rotate(9 * number).save(folder / f"{number}.png")
    return find_images([str(folder)])


def found(report):
    """What a run found, as far as it can be compared: rounding depends on what a processor did before."""
    return [
        (
            result["file"],
            [(entry["word"], entry["class_id"], round(entry["score"], 3)) for entry in result["detections"]],
        )
        for result in report.results
    ]


def work(detector, files, output):
    torch.set_num_threads(1)  # the threads of the parent are not there after a fork
    try:
        detect(detector, files, output, OPTIONS)
    except UserError:
        os._exit(2)
    os._exit(0)


def killed_at_random(detectors, files, output, dice):
    """Let all detectors write to one folder, and kill each at some moment."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(detector, files, output)) for detector in detectors]
    for process in processes:
        process.start()
    time.sleep(0.3 * dice.random() ** 2)
    for process in dice.sample(processes, len(processes)):
        time.sleep(0.3 * dice.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return [process.exitcode for process in processes]


def rounds(count, detectors, files, folder):
    """Return how the processes of some rounds ended; each round is finished and compared with runs of one alone."""
    alone = [found(detect(detector, files, folder / f"alone{i}", OPTIONS)) for i, detector in enumerate(detectors)]
    assert alone[0] != alone[1]
    ends, resumed = [], 0
    for number in range(count):
        dice, output = random.Random(number), folder / f"round{number}"
        ends += killed_at_random(detectors, files, output, dice)
        waiting = dice.sample(range(len(detectors)), len(detectors))
        for attempt in range(3):
            if not waiting:
                break
            place = waiting.pop(0)
            try:
                report = detect(detectors[place], files, output, OPTIONS)
            except UserError as error:
                assert "expected no unfinished results, or those of this run" in str(error)
                assert attempt == 0, "of two runs one can go on"
                waiting.append(place)
                continue
            assert found(report) == alone[place]
            resumed += report.resumed
            content = json.loads((output / "detections.json").read_text())
            assert [category["name"] for category in content["categories"]] == WORDS[place]
        assert not waiting
        left = {path.name for path in output.iterdir() if path.name != RESULTS_MARK and path.suffix != ".tmp"}
        assert left == {"detections.json", "drawings", "report.html", "thumbnails"}
    return ends, resumed


def test_results_of_other_words_are_never_taken_over(detectors, files, tmp_path):
    ends, _ = rounds(4, detectors, files, tmp_path)
    assert {-signal.SIGKILL, 2} & set(ends)


@pytest.mark.slow
def test_results_of_other_words_are_never_taken_over_in_fifty_rounds(detectors, files, tmp_path):
    ends, resumed = rounds(50, detectors, files, tmp_path)
    assert ends.count(-signal.SIGKILL) > 20
    assert resumed > 20


def hold(folder, told, forks):
    """Have a folder until killed, beside a child of this process where it forks."""
    with own_folder(folder, "output out"):
        child = os.fork() if forks else os.getpid()
        if child:
            told.put(child)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Start a process that has a folder, and return it with the id of its child."""
    context, started = multiprocessing.get_context("fork"), []

    def start(*, forks=False):
        told = context.SimpleQueue()
        process = context.Process(target=hold, args=(tmp_path / "out", told, forks))
        process.start()
        started.extend([process.pid, told.get()])
        return process, started[-1]

    yield start
    for number in set(started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def test_a_live_process_is_named_and_its_folder_is_left_alone(detectors, files, tmp_path, holder):
    process, _ = holder()
    message = f"output {tmp_path / 'out'}: expected a folder that no other run uses, got that of process {process.pid}"
    with pytest.raises(UserError, match=message):
        detect(detectors[0], files, tmp_path / "out", OPTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]
    process.kill()
    process.join()
    detect(detectors[0], files, tmp_path / "out", OPTIONS)  # the lock has ended with its process
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path, holder):
    process, child = holder(forks=True)
    process.kill()
    process.join()
    os.kill(child, 0)
    with own_folder(tmp_path / "out", "output"):
        pass


def workflow_with(cfg, monkeypatch):
    monkeypatch.setattr(workflows, "load_checked_config", lambda args: cfg)
    return Namespace(trust_pickle=False, allow_missing=[], resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_a_run_has_is_left_alone_by_training(resume, tmp_path, monkeypatch, holder):
    process, _ = holder()
    write_images(tmp_path / "world")
    arguments = workflow_with(training_config(tmp_path / "world", tmp_path / "out"), monkeypatch)
    arguments.resume = resume
    for do in (workflows.train, workflows.evaluate_only):
        with pytest.raises(UserError, match=f"OUTPUT_DIR .*got that of process {process.pid}"):
            do(arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_a_folder_that_a_run_has_is_left_alone_by_features(tmp_path, tiny, holder):
    process, _ = holder()
    overrides = tiny["overrides"] | {"OUTPUT_DIR": str(tmp_path / "out"), "INPUT_DIR": str(PHOTOS[0].parent)}
    with pytest.raises(UserError, match=f"OUTPUT_DIR .*got that of process {process.pid}"):
        extract_region_features(load_config(tiny["config"], flat(overrides)), None, ExtractionJob())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "world")
    cfg = training_config(tmp_path / "world", tmp_path / "out" / "run", MODEL__WEIGHTS=tmp_path / "no.pth")
    with pytest.raises(UserError, match=r"no\.pth"):
        workflows.train(workflow_with(cfg, monkeypatch))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_unfinished_run_is_refused(detectors, files, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["regionclip.batch.detect"], "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        detect(detectors[0], files, tmp_path, OPTIONS)
    monkeypatch.undo()
    before = (tmp_path / "detections.0.jsonl").read_text()
    for change in (
        (detectors[1], files, OPTIONS),
        (detectors[0], files[1:], OPTIONS),
        (detectors[0], files, DetectOptions()),
    ):
        with pytest.raises(UserError, match=r"or remove these files") as caught:
            detect(change[0], change[1], tmp_path, change[2])
        assert "in detections.0.jsonl" in str(caught.value)
    assert (tmp_path / "detections.0.jsonl").read_text() == before
    assert detect(detectors[0], files, tmp_path, OPTIONS).resumed == len(files)


def test_a_journal_without_a_result_is_nobodys(detectors, files, tmp_path):
    for content in ("", "another fingerp", "another fingerprint\n", 'another fingerprint\n{"image_id": 0, "insta'):
        (tmp_path / "detections.0.jsonl").write_text(content)
        assert detect(detectors[0], files, tmp_path, OPTIONS).resumed == 0


def interrupt(*_):
    raise KeyboardInterrupt


def test_folders_made_for_a_start_that_fails_are_removed(tmp_path):
    with pytest.raises(KeyError), own_folder(tmp_path / "a" / "b", "output"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).is_file()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with own_folder(tmp_path / "a" / "b", "output"):
        (tmp_path / "a" / "result").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_where_nothing_can_be_locked_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def acquire(self):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("regionclip.engine.ownership.FileLock.acquire", acquire)
    with own_folder(tmp_path / "out", "output"):
        pass
    assert "cannot be locked" in caplog.text


def test_errors_of_users_pass_between_processes():
    error = UserError([Problem("a", "b", "c", "d"), Problem("e", "f", "g", "h")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
    # What a data loader makes of the error of a worker
    assert str(UserError("Caught UserError in DataLoader worker")) == "Caught UserError in DataLoader worker"


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, number):
        raise user_error("file", "one", "none", "give one")


def test_errors_in_workers_of_a_data_loader_can_be_read():
    with pytest.raises(UserError, match=r"file: expected one, got none\. Fix: give one"):
        next(iter(torch.utils.data.DataLoader(Failing(), num_workers=1)))
