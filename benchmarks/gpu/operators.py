"""Operator tests on the device."""

from __future__ import annotations

from gpu import tests
from gpu.step import Notes, Setting


def work(setting: Setting, notes: Notes) -> None:
    """Run the tests, in a dry run only some; raises `RuntimeError` if one fails."""
    chosen = ("-k", "gradient or classes or definition") if setting.is_dry_run else ()
    tests.run(notes, setting.device, "tests/ops/test_ops_cuda.py", *chosen)
