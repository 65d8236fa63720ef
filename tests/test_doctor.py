"""`regionclip doctor` says what is optional."""

import os
import re
import subprocess
import sys
import tomllib

from regionclip import doctor
from tests.helpers.paths import REPOSITORY

BROKEN = """
import importlib.util, sys

class Broken:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file\\nsecond line")

from regionclip import doctor
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: name == "torch" or found(name)
sys.meta_path.insert(0, Broken)
sys.exit(doctor.main())
"""
"""Runs the doctor where torch is installed, and raises when it is imported."""


def test_a_broken_installation_has_a_table_too():
    environment = {key: value for key, value in os.environ.items() if key != "REGIONCLIP_MODEL"}
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"FIX torch +cannot be imported: libcudart.so.13", done.stdout)
    assert "unknown: libcudart.so.13" in done.stdout and "second line" not in done.stdout
    assert len(done.stdout.splitlines()) == len(doctor.CHECKS)


def test_missing_extras_come_with_their_command(monkeypatch):
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) <= set(declared)
    monkeypatch.setattr(doctor, "EXTRAS", {"video": ("av", "videos"), "data": ("json", "data")})
    monkeypatch.setitem(sys.modules, "av", None)
    finding = doctor.check_extras()
    assert (finding.state, finding.fix, finding.required) == (
        "data; without video (videos)",
        'pip install "regionclip[video]"',
        False,
    )
