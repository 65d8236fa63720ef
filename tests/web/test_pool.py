"""The queue of jobs: batches, limits, and workers that end."""

import asyncio
import os
import signal
import time

import pytest

from regionclip.errors import UserError
from regionclip.web.jobs import Job, WorkerSettings
from regionclip.web.pool import PoolSettings, WorkerPool
from tests.helpers.web_workers import run_stand_in


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr("regionclip.web.pool.run_worker", run_stand_in)
    started = []

    def start(**settings):
        started.append(WorkerPool(WorkerSettings("stand-in"), PoolSettings(**settings)))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close(1)


def answers(pool, *images):
    async def ask():
        return await asyncio.gather(*(pool.answer(Job("detect", image)) for image in images))

    return asyncio.run(ask())


def test_jobs_that_wait_are_a_batch_and_each_gets_its_own_answer(pool):
    started = pool(batch=4, batch_seconds=0.2)
    images = [b"%d" % number for number in range(10)]
    found = answers(started, *images)
    assert [answer.content["image"].encode() for answer in found] == images
    assert [answer.content["batch"] for answer in found] == [4] * 8 + [2] * 2
    assert started.state.batches == {4: 2, 2: 1} and started.queued == 0


def test_jobs_of_a_killed_worker_are_answered_by_the_next(pool, tmp_path):
    started = pool(batch=3, batch_seconds=0.2)
    (first,) = answers(started, b"before")
    found = answers(started, b"a", f"die once:{tmp_path / 'died'}".encode(), b"b")
    assert [answer.status for answer in found] == [200] * 3
    assert {answer.content["pid"] for answer in found} != {first.content["pid"]}
    assert started.state.restarts == 1 and started.alive == 1


def test_a_job_that_ends_every_worker_takes_no_other_with_it(pool):
    started = pool(batch=3, batch_seconds=0.2)
    found = answers(started, b"a", b"die", b"b")
    assert [answer.status for answer in found] == [200, 500, 200]
    assert found[1].problem.actual == "2 workers ended" and started.state.restarts == 2
    assert answers(started, b"after")[0].status == 200


def test_a_worker_killed_while_it_waits_is_replaced(pool):
    started = pool()
    (process,) = started.process_ids
    os.kill(process, signal.SIGKILL)
    assert answers(started, b"a")[0].status == 200
    assert started.process_ids != [process]


def test_too_many_jobs_and_too_slow_ones_are_refused(pool):
    started = pool(queue=2, seconds=1.0)
    found = answers(started, *[b"sleep"] * 6)
    refused = [answer for answer in found if answer.status == 503]
    assert 0 < len(refused) < 6 and all(answer.problem.what in ("queue", "time") for answer in refused)
    assert {answer.problem.what for answer in refused} >= {"queue"}
    slow = pool(seconds=0.2)
    (late,) = answers(slow, b"sleep")
    assert late.status == 503 and late.problem.expected == "an answer within 0.2 seconds"
    assert answers(pool(), b"a")[0].status == 200


def test_late_jobs_end_no_worker_and_clients_that_leave_no_thread(pool):
    """A job that waited until its time was over costs the next ones nothing."""
    started = pool(seconds=1.0, queue=20)
    found = answers(started, *[b"sleep"] * 8)
    assert sorted({answer.status for answer in found}) == [200, 503] and started.state.restarts == 0

    async def leave():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(started.answer(Job("detect", b"sleep")), 0.1)

    asyncio.run(leave())  # its loop is closed when the worker answers
    time.sleep(0.6)
    assert started.queued == 0 and answers(started, b"after")[0].status == 200


def test_jobs_are_refused_in_time_while_no_worker_can_start(pool, monkeypatch):
    started = pool(seconds=1.0)
    monkeypatch.setattr(started, "_start_worker", lambda number: (_ for _ in ()).throw(OSError(12, "no memory")))
    for process in started.process_ids:
        os.kill(process, signal.SIGKILL)
    before = time.monotonic()
    (found,) = answers(started, b"a")
    assert found.status == 503 and time.monotonic() - before < 3 and started.alive == 0
    monkeypatch.undo()
    assert answers(started, b"again")[0].status in (200, 503)


def test_closing_finishes_what_has_arrived_and_takes_nothing_more(pool):
    started = pool()

    async def ask():
        waiting = [asyncio.ensure_future(started.answer(Job("detect", b"sleep"))) for _ in range(3)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(started.close)
        return [*await asyncio.gather(*waiting), await started.answer(Job("detect", b"late"))]

    *arrived, late = asyncio.run(ask())
    assert [answer.status for answer in arrived] == [200] * 3
    assert late.status == 503 and late.problem.actual == "the server is stopping"
    assert started.alive == 0


def test_a_detector_that_cannot_be_loaded_is_one_error():
    pool = WorkerPool(WorkerSettings("no such detector"), PoolSettings())
    with pytest.raises(UserError, match="detector no such detector"):
        pool.start()
