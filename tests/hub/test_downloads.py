"""Fetching files from a local server: whole, resumed, refused, and never half there."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from regionclip import published
from regionclip.errors import UserError
from regionclip.hub import downloads, zoo
from regionclip.hub.downloads import download
from regionclip.hub.pretrained import load_pretrained
from tests.helpers.paths import REPOSITORY

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of its server, in parts if asked; breaks off where its server says so."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, with_body=True):
        server = self.server
        content = server.files.get(self.path)
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if content is None:
            self.send_error(404)
            return
        if server.errors:
            self.send_error(server.errors.pop())
            return
        start, tag = 0, f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, tag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if server.tagged:
            self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_body:
            end = server.break_after.pop() if server.break_after else None
            self.wfile.write(content[start:end])


@pytest.fixture
def server(monkeypatch):
    for name in ("REGIONCLIP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.break_after, server.errors = {"/w.pth": CONTENT}, [], [], []
    server.tagged = True
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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
    server.break_after = [2_500_000, 1_000_000]
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=2500000-"]


def test_an_interrupted_download_goes_on_in_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    server.break_after = [1_000_000]
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
from regionclip.hub import downloads
downloads.CHUNK = 100_000
from tqdm import tqdm
class Progress(tqdm):
    def update(self, n=1):
        if self.n > 1_000_000:
            os.kill(os.getpid(), 9)
        super().update(n)
downloads.progress_bar = lambda description, **options: Progress(desc=description, **options)
downloads.download("{server.address}/w.pth", Path({str(tmp_path / "w.pth")!r}), "{SHA}")
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
    server.tagged, server.break_after = tagged, [1_000_000]
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


def test_a_server_that_is_busy_is_asked_again(server, tmp_path):
    server.errors = [503]
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
    server.errors = [503, 503, 503]
    with pytest.raises(UserError, match="HTTP 503"):
        download(f"{server.address}/w.pth", tmp_path / "other.pth", SHA)


def test_no_server_at_all(tmp_path):
    with pytest.raises(UserError, match="no connection that lasts"):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")


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


def test_from_the_hub(server, tmp_path):
    server.files["/owner/models/resolve/main/regionclip/w.pth"] = CONTENT
    code = f"""
from pathlib import Path
from regionclip.hub.downloads import download
from regionclip.errors import UserError
download("hf://owner/models/regionclip/w.pth", Path({str(tmp_path / "w.pth")!r}), "{SHA}")
try:
    download("hf://owner/models/nothing.pth", Path({str(tmp_path / "n.pth")!r}))
except UserError as error:
    print("refused:", error)
"""
    environment = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "h"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert "refused: hf://owner/models/nothing.pth: expected a file on the hub" in done.stdout
    assert not (tmp_path / "n.pth").exists()


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Look for published files in an empty folder."""
    monkeypatch.setattr(published, "download_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regionclip.files.REPOSITORY", tmp_path)
    return tmp_path / "pretrained_ckpt"


def test_published_files_without_address_are_named_with_their_place(checkpoints):
    with pytest.raises(UserError) as caught:
        load_pretrained("regionclip_pretrained-cc_rn50")
    message = str(caught.value)
    assert "pretrained_ckpt/regionclip/regionclip_pretrained-cc_rn50.pth: expected the published file" in message
    assert "drive.google.com/drive/folders/1hzrJBvcCrahoRcqJRqzkIGFO_HUSJIii" in message
    assert str(checkpoints / "regionclip" / "regionclip_pretrained-cc_rn50.pth") in message


def test_a_mirror_serves_published_files(checkpoints, server):
    file = zoo.FILES["concept_emb/coco_65_cls_emb.pth"]
    torch.save(torch.rand(65, 1024), checkpoints.parent / "e.pth")
    server.files["/mirror/concept_emb/coco_65_cls_emb.pth"] = (checkpoints.parent / "e.pth").read_bytes()
    place = zoo.fetch(file, f"{server.address}/mirror/")
    assert place == checkpoints / "concept_emb" / "coco_65_cls_emb.pth"
    assert zoo.check(file) == "embeddings [65, 1024]"
    torch.save(torch.rand(48, 1024), place)
    with pytest.raises(UserError, match=r"expected a float tensor \[65, 1024\], got float32 \[48, 1024\]"):
        zoo.check(file)


def test_a_published_file_has_to_be_what_its_name_says(checkpoints):
    file = zoo.FILES["rpn/rpn_coco_48.pth"]
    file.target.parent.mkdir(parents=True)
    torch.save(
        {"model": {"proposal_generator.rpn_head.objectness_logits.weight": torch.zeros(15, 1024, 1, 1)}}, file.target
    )
    assert "[15, 1024, 1, 1]" in zoo.check(file)
    torch.save(
        {"model": {"proposal_generator.rpn_head.objectness_logits.weight": torch.zeros(3, 256, 1, 1)}}, file.target
    )
    with pytest.raises(UserError, match=r"expected .* \[15, 1024, 1, 1\], got \[3, 256, 1, 1\]"):
        zoo.check(file)
    clip = zoo.FILES["clip/RN50.pt"]
    clip.target.parent.mkdir(parents=True)
    clip.target.write_bytes(b"something else")
    with pytest.raises(UserError, match="expected SHA-256 afeb0e10"):
        zoo.check(clip)


def test_every_model_names_files_and_a_config_that_exist():
    for model in zoo.MODELS.values():
        for path in model.all_files:
            assert path in zoo.FILES, path
        assert (REPOSITORY / model.config).is_file()
    addresses = json.dumps([file.url for file in zoo.FILES.values() if file.url])
    assert all(file.sha256 in addresses for file in zoo.FILES.values() if file.url)
