"""Ratios that benchmarks measured are kept and compared."""

import json
import sys

import pytest

from tests.helpers.paths import REPOSITORY

BEFORE = {"speedup of 1 threads": {"RoIAlign": 8.0, "NMS": 2.0}, "speedup_float32": 4.0, "seconds": 1.0, "rows": [1, 2]}


@pytest.fixture
def metrics(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import metrics

    monkeypatch.setattr(metrics, "FILE", tmp_path / "metrics.json")
    monkeypatch.setattr(metrics, "describe", lambda: {"instruction_set": "avx2", "processor": "one"})
    yield metrics
    sys.modules.pop("metrics")


def run(metrics, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["metrics.py", *arguments])
    return metrics.main()


def test_results_are_kept_by_instruction_set_with_their_machine(metrics, monkeypatch):
    monkeypatch.setattr(metrics, "run", lambda name: BEFORE)
    metrics.FILE.write_text(json.dumps({"avx512": {"ops": {"result": {}}}}))
    assert run(metrics, monkeypatch, "run", "ops", "--output", str(metrics.FILE)) == 0
    kept = json.loads(metrics.FILE.read_text())
    assert kept["avx512"] == {"ops": {"result": {}}}
    assert kept["avx2"]["ops"] == {
        "machine": {"instruction_set": "avx2", "processor": "one"},
        "result": BEFORE,
    }


def test_a_ratio_that_fell_is_named_and_a_time_is_not(metrics, monkeypatch, capsys):
    metrics.FILE.write_text(json.dumps({"avx2": {"ops": {"result": BEFORE}}}))
    before = metrics.FILE.read_text()
    for roi_align, code in ((6.1, 0), (5.9, 1)):
        now = {**BEFORE, "speedup of 1 threads": {"RoIAlign": roi_align, "NMS": 9.0}, "seconds": 7.0}
        monkeypatch.setattr(metrics, "run", lambda name, now=now: now)
        assert run(metrics, monkeypatch, "compare", "ops") == code
    assert "ops/speedup of 1 threads/RoIAlign: 5.90, was 8.00" in capsys.readouterr().out
    assert metrics.FILE.read_text() == before


def test_what_was_never_kept_is_not_compared(metrics, monkeypatch):
    monkeypatch.setattr(metrics, "run", lambda name: BEFORE)
    assert run(metrics, monkeypatch, "compare", "ops") == 0


def test_the_file_that_pages_cite_says_where_each_result_comes_from():
    path = REPOSITORY / "docs" / "metrics.json"
    for results in json.loads(path.read_text()).values():
        for name, entry in results.items():
            assert {"processor", "instruction_set", "torch", "date", "threads"} <= set(entry["machine"]), name
            assert entry["result"], name
