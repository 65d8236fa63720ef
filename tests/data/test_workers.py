"""A worker process that fails does not leave the command waiting."""

import resource
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from regionclip.data import workers
from regionclip.data.workers import allow_open_files, arriving
from regionclip.errors import UserError


class Unsendable:
    """What a worker can make, and cannot send."""

    def __reduce__(self):
        raise OSError("no room")


class Made(Dataset):
    """A dataset of one value."""

    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return self.value


def loader(value, count):
    return DataLoader(Made(value), batch_size=None, num_workers=count, timeout=workers.wait_limit(count))


def test_a_batch_that_cannot_be_sent_is_an_error(monkeypatch, capfd):
    monkeypatch.setattr(workers, "LONGEST_WAIT", 2)
    with pytest.raises(UserError, match=r"expected a batch within 2 s, got none. Fix: see the errors above"):
        list(arriving(loader(Unsendable(), 1)))
    assert "no room" in capfd.readouterr().err


@pytest.mark.parametrize("count", [0, 1])
def test_batches_arrive(count):
    assert [batch.tolist() for batch in arriving(loader(torch.arange(3), count))] == [[0, 1, 2]] * 2


def test_other_errors_of_a_worker_stay_what_they_are():
    with pytest.raises(RuntimeError, match="something else"):
        list(arriving(DataLoader(Failing(), batch_size=None)))


class Failing(Dataset):
    """A dataset that cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, number):
        raise RuntimeError("something else")


MANY = """
import resource, torch
from torch.utils.data import DataLoader
from regionclip.data.workers import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
allow_open_files()
batches = DataLoader([[torch.zeros(2) for _ in range(100)]] * 2, batch_size=None, num_workers=1, timeout=30)
print([len(batch) for batch in batches], torch.multiprocessing.get_sharing_strategy())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tensors are sent as open files on Linux alone")
def test_a_batch_of_many_tensors_needs_more_files_than_are_usual():
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[0] == "[100, 100] file_descriptor", done.stderr
    without = MANY.replace("\nallow_open_files()", "").replace("timeout=30", "timeout=3")
    assert (
        "Too many open files"
        in subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, timeout=120).stderr
    )


def test_the_limit_of_open_files_is_only_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
