"""Every published detector from files of the right names and shapes, served locally: fetched, loaded, used."""

import json
import shutil

import pytest

from regionclip.hub import zoo
from tests.helpers.published import PHOTO, serve


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_published_detector_is_fetched_loaded_and_used(name, servers, command, checkpoints, monkeypatch):
    server = servers()
    files = serve(server, zoo.MODELS[name], monkeypatch)
    shutil.copy(PHOTO, "photo.jpg")
    small = ("--set", "INPUT.MIN_SIZE_TEST=96", "--set", "TEST.DETECTIONS_PER_IMAGE=5")
    few = () if name.startswith("cora") else ("--set", "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST=20")
    given = ("photo.jpg", "--words", "cat", "--threshold", "0", "--model", name, "--device", "cpu", *small, *few)
    code, _, error = command("detect", *given)
    assert code == 2
    assert "add --yes" in error
    assert not any(path.is_file() for path in checkpoints.rglob("*"))
    code, output, error = command("detect", *given, "--yes", "--verbose", "--json")
    assert code == 0, error
    assert {str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*.*")} == {*files, "weights.lock"}
    assert "matched" in output
    assert len(json.loads(output.splitlines()[-1])["images"][0]["detections"]) > 0
    requests = len(server.requests)
    code, output, error = command("detect", *given, "--output", "again")
    assert code == 0, error
    assert "matched" not in output  # the table is for --verbose
    assert f"Detector {name}" in output
    assert len(server.requests) == requests
