"""Images are made in several processes, and one that is killed leaves nobody waiting."""

import os
import signal
import time

import pytest

from regionclip.data.emoji_scenes.processes import made_in_processes
from regionclip.errors import UserError

noted = None
"""Folder where a process notes what it makes."""


def start(*_):
    pass


def square(number):
    return number * number


def killed_at_seven(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order():
    assert list(made_in_processes(square, range(10), start, (1, 2), chunk=3)) == [n * n for n in range(10)]


def test_a_killed_process_is_an_error():
    with pytest.raises(UserError, match="processes that make images: expected all at work, got one was ended"):
        list(made_in_processes(killed_at_seven, range(10), start, (), chunk=2))


def note_in(folder):
    global noted
    noted = folder


def noted_slowly(number):
    time.sleep(0.02)
    (noted / str(number)).touch()
    return number


def test_nothing_more_is_made_after_an_interruption(tmp_path):
    made = made_in_processes(noted_slowly, range(400), note_in, (tmp_path,), chunk=1)
    assert next(made) == 0
    made.close()
    assert 0 < len(list(tmp_path.iterdir())) < 200
