"""Operator and golden tests on the device, with the tolerances of the CPU."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from gpu.step import Notes

GOLDENS = "detector or proposals or thresholds or variants or features or training or selection"
"""Golden tests that depend on the device; the others are about text and files."""


class Outcomes:
    """A pytest plugin that counts outcomes and keeps the messages of failures."""

    def __init__(self) -> None:
        """Start with empty counts."""
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test once: by its call, or by the setup that skipped or failed it."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr)[-800:]


def run(notes: Notes, device: str, *arguments: str) -> None:
    """Run tests on a device and record their outcomes; raises `RuntimeError` if none ran or one failed."""
    os.environ["REGIONCLIP_TEST_DEVICE"] = device
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[outcomes])
    notes["outcomes"] = dict(outcomes.counts)
    notes["failures"] = outcomes.failures
    if outcomes.failures or not outcomes.counts["passed"]:
        raise RuntimeError(f"tests: {dict(outcomes.counts)}")
