"""Freed memory stays with a process that detects, unless its user has settings of their own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other settings")

BLOCK = 200  # MB

MEASURE = f"""
from regionclip.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

kept, before = keep_freed_memory(), resident()
for _ in range(8):
    block = bytearray(b"x") * ({BLOCK} << 20)
    del block
    print(kept, (resident() - before) >> 20)
"""


def measure(**variables):
    """Return whether freed memory is kept, and the growth in MB after each of eight blocks that were freed again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", MEASURE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | variables)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 8
    return {kept for kept, _ in lines}, [int(megabytes) for _, megabytes in lines]


def test_a_freed_block_stays_and_is_used_again():
    kept, growth = measure()
    assert kept == {"True"}
    assert min(growth) > 0.95 * BLOCK
    assert max(growth) < 2 * BLOCK


@pytest.mark.parametrize("setting", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_settings_of_the_user_stay(setting):
    kept, growth = measure(**{setting: "131072"})
    assert kept == {"False"}
    assert growth[0] < BLOCK / 2


def test_other_settings_of_glibc_stay():
    assert measure(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == {"False"}


def test_only_commands_change_the_process():
    code = """
import sys
from unittest import mock
with mock.patch("regionclip.memory.keep_freed_memory", side_effect=SystemExit("changed")):
    from regionclip import RegionCLIP
    RegionCLIP.from_pretrained("emoji").set_vocabulary(["cat"])
    from regionclip.engine.command import run_command
    run_command(lambda: 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, "changed")
