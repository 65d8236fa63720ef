"""`regionclip doctor` says what is optional."""

import sys
import tomllib

from regionclip import doctor
from tests.helpers.paths import REPOSITORY


def test_a_broken_installation_has_a_table_too(monkeypatch):
    monkeypatch.delenv("REGIONCLIP_MODEL", raising=False)
    monkeypatch.setitem(sys.modules, "regionclip.hub.default", None)  # as if what it imports were missing
    finding = doctor.check_default_detector()
    assert finding.state.startswith("unknown: ") and not finding.required


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
