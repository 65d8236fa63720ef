"""The downloader against a local server: whole, resumed, refused, and never half there."""

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple

import pytest

from regionclip.errors import UserError
from regionclip.hub import downloads
from regionclip.hub.downloads import Expected, download
from tests.helpers.paths import REPOSITORY
from tests.hub.conftest import CONTENT

SHA = hashlib.sha256(CONTENT).hexdigest()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_checked(server, tmp_path):
    target = download(f"{server.address}/w.pth", tmp_path / "in" / "w.pth", SHA)
    assert target.read_bytes() == CONTENT
    assert left_in(tmp_path / "in") == ["w.pth"]
    download(f"{server.address}/w.pth", target, SHA)
    assert len(server.requests) == 1


def test_another_hash_leaves_nothing(server, tmp_path):
    with pytest.raises(UserError, match=f"w.pth: expected SHA-256 {'0' * 64}, got {SHA}"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", "0" * 64)
    assert left_in(tmp_path) == []
    (tmp_path / "w.pth").write_bytes(b"put here by hand")
    with pytest.raises(UserError, match=f"expected SHA-256 {SHA}"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)
    assert (tmp_path / "w.pth").read_bytes() == b"put here by hand"


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.behavior.break_after = [1_500_000, 1_000_000]
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=2500000-"]


def test_an_interrupted_download_goes_on_in_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    server.behavior.break_after = [1_000_000]
    with pytest.raises(UserError, match="run it again: it goes on where it stopped"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)
    assert "w.pth" not in left_in(tmp_path)
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    assert server.requests[-1][2] == "bytes=1000000-"
    assert left_in(tmp_path) == ["w.pth"]


def test_a_killed_download_goes_on(server, tmp_path):
    code = f"""
import os
from pathlib import Path
from regionclip.hub import downloads, transfer
transfer.CHUNK = 100_000
class Count(downloads.ByteCount):
    def advance(self, size):
        self.done = getattr(self, "done", 0) + size
        if self.done > 1_000_000:
            os.kill(os.getpid(), 9)
downloads.download("{server.address}/w.pth", Path({str(tmp_path / "w.pth")!r}), "{SHA}", progress=Count(""))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, timeout=100)
    assert done.returncode == -9
    assert "w.pth" not in left_in(tmp_path)
    assert (tmp_path / "w.pth.part").stat().st_size > 900_000
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    assert server.requests[-1][2] is not None


@pytest.mark.parametrize("tagged", [True, False])
def test_a_file_that_changed_meanwhile_is_not_mixed(tagged, server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    server.behavior.tagged, server.behavior.break_after = tagged, [1_000_000]
    with pytest.raises(UserError, match="no connection that lasts"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth")
    server.files["/w.pth"] = CONTENT[::-1]
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth").read_bytes() == CONTENT[::-1]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "w.pth.part.tag").write_text(f'"{SHA[:8]}"')
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT


def test_what_is_not_there_is_said_at_once(server, tmp_path):
    with pytest.raises(UserError, match="expected a file, got HTTP 404 Not Found"):
        download(f"{server.address}/nothing.pth", tmp_path / "w.pth")
    assert len(server.requests) == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(code, server, tmp_path):
    server.behavior.errors = [(code, 0), (code, 0)]
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    server.behavior.errors = [(code, 0)] * 5
    with pytest.raises(UserError, match=f"expected a file, got HTTP {code}"):
        download(f"{server.address}/w.pth", tmp_path / "other.pth", SHA)
    assert left_in(tmp_path) == ["w.pth"]


def test_the_server_says_how_long_to_wait(server, tmp_path):
    server.behavior.errors = [(429, 1)]
    start = time.monotonic()
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    assert time.monotonic() - start >= 1
    server.behavior.errors = [(429, 3600)]
    with pytest.raises(UserError, match="HTTP 429 Too Many Requests, which asks to wait 3600 s"):
        download(f"{server.address}/w.pth", tmp_path / "other.pth", SHA)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final(code, server, tmp_path):
    server.behavior.errors = [code] * 5
    with pytest.raises(UserError, match=f"got HTTP {code}"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)
    assert len(server.requests) == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("lie", ["whole", "shifted"])
@pytest.mark.parametrize("sha256", [SHA, ""])
def test_a_server_that_lies_about_ranges_is_asked_for_the_whole(lie, sha256, server, tmp_path):
    server.behavior.break_after, server.behavior.lie = [1_000_000], lie
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", sha256).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.requests] == [None, "bytes=1000000-", None]


def test_a_page_is_no_file(server, tmp_path):
    server.behavior.lie = "page"
    with pytest.raises(UserError, match="expected a file, got a web page"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth")
    assert left_in(tmp_path) == []


def test_a_truncated_file_is_noticed_by_its_hash_or_content(server, tmp_path):
    server.files["/w.pth"] = CONTENT[:-1000]
    with pytest.raises(UserError, match=f"expected SHA-256 {SHA}"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)
    prefix = hashlib.md5(CONTENT).hexdigest()[:6]
    with pytest.raises(UserError, match=f"expected MD5 that begins with {prefix}"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", expected=Expected(md5_prefix=prefix))

    def refuse(path):
        raise UserError([])

    with pytest.raises(UserError):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", expected=Expected(content=refuse))
    assert left_in(tmp_path) == []


def test_a_full_disk_is_said_before(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(UserError, match=r"^(?!http).*: expected 3 MB of free space in .*, got 1 MB"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)
    assert left_in(tmp_path) == []


def test_no_server_at_all(tmp_path):
    with pytest.raises(UserError, match="no connection that lasts"):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["REGIONCLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_which_file_to_put_where(name, server, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match="downloads are switched off") as caught:
        download(f"{server.address}/w.pth", tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert not server.requests
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)


def test_two_at_once_fetch_one_file(server, tmp_path):
    threads = [
        threading.Thread(target=download, args=(f"{server.address}/w.pth", tmp_path / "w.pth", SHA)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert len(server.requests) == 1
