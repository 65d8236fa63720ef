"""Sources of published files: hub, Drive, mirrors, tried in order; what was first seen is compared later."""

import hashlib
import json
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from regionclip.errors import UserError
from regionclip.hub import zoo
from regionclip.hub.addresses import locate
from regionclip.hub.content import check
from regionclip.hub.downloads import download
from regionclip.hub.fetching import fetch, fetch_all, require_consent
from regionclip.hub.lock_file import lock_path, pinned_hash
from regionclip.published import PublishedFile
from tests.helpers.paths import REPOSITORY
from tests.hub.conftest import CONTENT

SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("hf://owner/models/w.pth", "/owner/models/resolve/main/w.pth"),
        ("hf://owner/models@v1/sub/w.pth", "/owner/models/resolve/v1/sub/w.pth"),
        ("hf://spaces/owner/demo@refs/w.pth", "/spaces/owner/demo/resolve/refs/w.pth"),
        ("hf://datasets/owner/data/a b.pth", "/datasets/owner/data/resolve/main/a%20b.pth"),
    ],
)
def test_addresses_of_the_hub(address, path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert locate(address).url == f"https://mirror.example{path}"
    monkeypatch.delenv("HF_ENDPOINT")
    assert locate(address).url == f"https://huggingface.co{path}"
    with pytest.raises(UserError, match=r"expected hf://\[spaces/\|datasets/\]owner/repository"):
        locate("hf://owner/models")


@pytest.fixture
def hub(servers, monkeypatch):
    """Return the server of the hub and that of its storage, which the first redirects to."""
    hub, storage = servers(), servers()
    storage.files["/blob"] = CONTENT
    hub.redirects["/owner/models/resolve/main/w.pth"] = (f"{storage.address}/blob", CONTENT)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return hub, storage


def test_the_token_stays_with_the_hub(hub, tmp_path):
    server, storage = hub
    assert download("hf://owner/models/w.pth", tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.tokens == ["Bearer secret"]
    assert storage.tokens == [None]


def test_the_hub_says_the_hash(hub, tmp_path):
    _, storage = hub
    storage.files["/blob"] = CONTENT[::-1]
    with pytest.raises(UserError, match=f"expected SHA-256 {SHA}"):
        download("hf://owner/models/w.pth", tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_hub_download_goes_on_though_the_storage_has_other_tags(hub, tmp_path):
    """The tag of the storage differs from visit to visit; that of the hub is the file's."""
    _, storage = hub
    storage.behavior.break_after, storage.behavior.tagged = [1_000_000], False
    assert download("hf://owner/models/w.pth", tmp_path / "w.pth").read_bytes() == CONTENT
    assert [wanted for _, _, wanted in storage.requests] == [None, "bytes=1000000-"]
    storage.requests.clear()
    (tmp_path / "n.pth.part").write_bytes(CONTENT[:1000])
    (tmp_path / "n.pth.part.tag").write_text("linked:" + "0" * 64)  # of a file that was replaced since
    assert download("hf://owner/models/w.pth", tmp_path / "n.pth").read_bytes() == CONTENT
    assert [wanted for _, _, wanted in storage.requests] == ["bytes=1000-", None]


def test_small_files_of_the_hub_have_no_redirect(hub, tmp_path):
    server, _ = hub
    server.files["/owner/models/resolve/main/config.json"] = b"{}"
    assert download("hf://owner/models/config.json", tmp_path / "config.json").read_bytes() == b"{}"
    with pytest.raises(UserError, match="got HTTP 404"):
        download("hf://owner/models/nothing.pth", tmp_path / "n.pth")


def published_file(path="rpn/rpn_coco_48.pth", *sources, **known):
    """Return a file that is identified by a shape, and its content."""
    state = {"model": {"rpn_head.objectness_logits.weight": torch.zeros(15, 8, 1, 1)}}
    return PublishedFile(path, sources, key="objectness_logits.weight", shape=(15, 8, 1, 1), **known), state


@pytest.fixture
def rpn_bytes(tmp_path):
    torch.save(published_file()[1], tmp_path / "rpn.pth")
    return (tmp_path / "rpn.pth").read_bytes()


def test_sources_are_tried_in_order(server, checkpoints, rpn_bytes, caplog):
    caplog.set_level("INFO")
    server.files |= {"/second.pth": rpn_bytes, "/wrong.pth": CONTENT}
    addresses = [f"{server.address}/{name}.pth" for name in ("nothing", "wrong", "second")]
    file, _ = published_file("rpn/rpn_coco_48.pth", *addresses)
    assert fetch(file).read_bytes() == rpn_bytes
    assert f"from {addresses[2]}" in caplog.text
    missing, _ = published_file("rpn/other.pth", addresses[0], "drive://abc")
    with pytest.raises(UserError) as caught:
        fetch(missing)
    message = str(caught.value)
    assert f"{addresses[0]}: HTTP 404 Not Found instead of a file; drive://abc: not installed" in message
    assert "https://drive.google.com/file/d/abc/view" in message
    assert str(checkpoints / "rpn" / "other.pth") in message


def test_another_file_with_the_same_weights_serves(server, checkpoints, rpn_bytes, monkeypatch):
    server.files["/b.pth"] = rpn_bytes
    second, _ = published_file("rpn/b.pth", f"{server.address}/b.pth")
    monkeypatch.setitem(zoo.FILES, "rpn/b.pth", second)
    first, _ = published_file("rpn/a.pth", f"{server.address}/a.pth", instead="rpn/b.pth")
    assert fetch(first).resolve() == checkpoints / "rpn" / "b.pth"
    requests = len(server.requests)
    assert fetch(first).resolve() == checkpoints / "rpn" / "b.pth"
    assert len(server.requests) == requests


def test_a_file_without_published_hash_is_pinned_on_first_sight(server, checkpoints, rpn_bytes):
    server.files["/rpn.pth"] = rpn_bytes
    file, state = published_file("rpn/rpn_coco_48.pth", f"{server.address}/rpn.pth")
    place = fetch(file)
    entry = json.loads(lock_path().read_text())["rpn/rpn_coco_48.pth"]
    assert entry["sha256"] == hashlib.sha256(rpn_bytes).hexdigest() == pinned_hash(file)
    assert (entry["size"], entry["source"]) == (len(rpn_bytes), file.sources[0])
    place.unlink()
    state["model"]["rpn_head.objectness_logits.weight"] += 1
    torch.save(state, checkpoints.parent / "changed.pth")
    server.files["/rpn.pth"] = (checkpoints.parent / "changed.pth").read_bytes()
    with pytest.raises(UserError, match=r"as first seen on 20\d\d-\d\d-\d\d from http"):
        fetch(file)
    assert not place.exists()
    place.write_bytes(server.files["/rpn.pth"])
    with pytest.raises(UserError, match=f"expected SHA-256 {entry['sha256']}"):
        check(file, pinned_hash(file))


@pytest.fixture
def gdown(monkeypatch):
    """Install a fake gdown, which records its calls."""
    module = types.SimpleNamespace(calls=[], files={"id1": CONTENT}, folder={"sub/w.pth": "id1"}, error=None)

    def fetch_file(*, id, output, resume, quiet, progress):
        module.calls.append(id)
        if module.error:
            raise module.error
        content = module.files[id]
        Path(output).write_bytes(content)
        for done in (len(content) // 2, len(content)):
            progress(done, len(content))
        return output

    def list_folder(*, id, output, skip_download, quiet):
        assert skip_download
        names = module.folder.items()
        return [types.SimpleNamespace(id=file, path=path, local_path=f"{output}/{path}") for path, file in names]

    module.download, module.download_folder = fetch_file, list_folder
    monkeypatch.setitem(sys.modules, "gdown", module)
    return module


def test_from_drive(gdown, servers, tmp_path):
    assert download("drive://id1", tmp_path / "a.pth", SHA).read_bytes() == CONTENT
    assert download("drive://folders/f1/sub/w.pth", tmp_path / "b.pth", SHA).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"expected a file of this name in the folder, got none.*/folders/f1"):
        download("drive://folders/f1/sub/n.pth", tmp_path / "n.pth")
    gdown.error = RuntimeError("Too many users have viewed or downloaded this file recently")
    with pytest.raises(UserError, match="got Too many users have viewed"):
        download("drive://id1", tmp_path / "n.pth")
    gdown.error, gdown.files["id1"] = None, b"<!DOCTYPE html> Quota exceeded"
    with pytest.raises(UserError, match="got a web page"):
        download("drive://id1", tmp_path / "n.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_drive_without_gdown_says_what_to_install(servers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"expected gdown.*got not installed.*regionclip\[drive\].*file/d/id1/view"):
        download("drive://id1", tmp_path / "a.pth")


def test_several_files_at_once(server, checkpoints, rpn_bytes):
    files = []
    for number in range(6):
        server.files[f"/{number}.pth"] = rpn_bytes
        files.append(published_file(f"rpn/{number}.pth", f"{server.address}/{number}.pth", megabytes=1)[0])
    server.files.pop("/3.pth")
    (error,) = fetch_all(files)
    assert "rpn/3.pth" in str(error)
    assert sorted(path.name for path in (checkpoints / "rpn").iterdir()) == [f"{i}.pth" for i in (0, 1, 2, 4, 5)]
    assert len(json.loads(lock_path().read_text())) == 5


def test_large_downloads_are_asked_for_once(checkpoints, monkeypatch, capsys):
    large = published_file("rpn/large.pth", "https://nowhere.example/l", megabytes=51, license="MIT")[0]
    small = published_file("rpn/small.pth", "https://nowhere.example/s", megabytes=50)[0]
    require_consent([small], agreed=False)
    require_consent([large], agreed=True)
    with pytest.raises(UserError, match=r"expected --yes, for there is no terminal to ask on, got large") as caught:
        require_consent([large], agreed=False)
    assert f"about 51 MB (MIT), to {checkpoints}" in str(caught.value)
    for answer, agrees in (("y\n", True), ("\n", True), ("n\n", False), ("", False)):
        stream = types.SimpleNamespace(isatty=lambda: True, readline=lambda answer=answer: answer)
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr("regionclip.console._is_terminal", lambda: True)
        outcome = nullcontext() if agrees else pytest.raises(UserError, match="expected consent")
        with outcome:
            require_consent([large, small], agreed=False)
    assert "2 files, about 101 MB (Apache-2.0, MIT)" in capsys.readouterr().err


def test_two_processes_fetch_one_file(server, tmp_path):
    code = f"""
from pathlib import Path
from regionclip.hub.downloads import download
download("{server.address}/w.pth", Path({str(tmp_path / "w.pth")!r}), "{SHA}")
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(timeout=100) for process in both] == [0, 0]
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_every_file_has_a_source_and_a_check():
    for path, file in zoo.FILES.items():
        assert file.path == path and file.sources, path
        assert file.sha256 or file.shape, path
        assert file.megabytes, path
        assert not file.instead or file.instead in zoo.FILES
        assert all(address.split("://")[0] in ("https", "hf", "drive") for address in file.sources)
    assert all(file.sha256 in file.sources[0] for file in zoo.FILES.values() if "openaipublic" in file.sources[0])
    for model in zoo.MODELS.values():
        assert model.summary
        assert all(path in zoo.FILES for path in model.all_files)
        assert (REPOSITORY / model.config).is_file()
    assert np.all(np.diff([model.rank for model in zoo.PHOTO_MODELS]) > 0)


def test_proxies_of_the_environment_are_used(servers, tmp_path, monkeypatch):
    proxy = servers()
    proxy.files["http://nowhere.example/w.pth"] = CONTENT
    monkeypatch.setenv("http_proxy", proxy.address)
    monkeypatch.delenv("no_proxy")
    assert download("http://nowhere.example/w.pth", tmp_path / "w.pth", SHA).read_bytes() == CONTENT
