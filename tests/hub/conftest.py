"""Local servers, and an empty folder of published files."""

import numpy as np
import pytest

from regionclip import published
from tests.helpers.servers import start_server

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def servers(monkeypatch):
    """Return a function that starts servers, with downloads switched on and short waits."""
    for name in ("REGIONCLIP_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "REGIONCLIP_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = []

    def start():
        started.append(start_server())
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(servers):
    """Return a server with one file."""
    server = servers()
    server.files["/w.pth"] = CONTENT
    return server


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Look for published files in an empty folder."""
    for module in (published, "regionclip.hub.lock_file"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.download_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regionclip.files.download_folder", lambda: tmp_path)
    return tmp_path / "pretrained_ckpt"
