"""The tests of the operators on the device."""

from __future__ import annotations

from gpu import tests
from gpu.step import Notes, Setting


def work(setting: Setting, notes: Notes) -> None:
    """Run them; raises `RuntimeError` when one fails."""
    tests.run(notes, setting.device, "tests/test_ops_cuda.py")
