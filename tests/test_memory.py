"""Freed memory stays with a process that detects, unless its user has settings of their own."""

import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import torch
from regionclip.modeling.memory import KEPT_BYTES, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

kept, before = keep_freed_memory(), resident()
for megabytes in (200, 1500):
    block = torch.ones(megabytes << 20, dtype=torch.uint8)
    del block
    print(kept, (resident() - before) >> 20)
"""


def measure(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", MEASURE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | variables)
    return [(kept == "True", int(megabytes)) for kept, megabytes in map(str.split, result.stdout.splitlines())]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other settings")
def test_a_little_is_kept_and_more_than_a_gigabyte_given_back():
    for _ in range(4):
        (kept, small), (_, large) = measure()
        assert kept
        assert 190 < small < 300
        if large < 1024:
            return
    # In about one process of five something lies above the block, and glibc gives back the end of its heap alone.
    pytest.fail("memory above the limit was never given back")


def test_settings_of_the_user_stay():
    (kept, megabytes), _ = measure(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    assert megabytes < 100
