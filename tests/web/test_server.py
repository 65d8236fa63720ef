"""The server over HTTP, with a tiny detector: answers, hostile requests, keys, and a stop that finishes its work."""

import asyncio
import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn

from regionclip import RegionCLIP
from regionclip.engine.distributed import free_port
from regionclip.web.guards import Limits
from regionclip.web.headers import TimedHeaders
from regionclip.web.jobs import WorkerSettings
from regionclip.web.pool import PoolSettings, WorkerPool
from regionclip.web.server import create_app
from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
LIMITS = Limits(bytes=300_000, seconds=20.0, per_client=40, words=20, boxes=10)


def serve(app, **options):
    """Serve an application on a free port in a thread, and return (port, function that stops it)."""
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="error", **options))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started

    def stop():
        server.should_exit = True
        thread.join()

    return server.config.port, stop


@pytest.fixture(scope="module")
def pool(detector_folder, tmp_path_factory):
    words = tmp_path_factory.mktemp("words") / "pets.txt"
    words.write_text("cat | kitten\ndog\n")
    settings = WorkerSettings(
        str(detector_folder), "cpu", vocabularies={"pets": str(words)}, max_pixels=2_000_000, threads=1
    )
    started = WorkerPool(settings, PoolSettings(queue=60))
    started.start()
    yield started
    started.close(1)


@pytest.fixture(scope="module")
def port(pool):
    port, stop = serve(create_app(pool, LIMITS))
    yield port
    pool.close = lambda seconds=1: True  # the fixture of the pool does
    stop()
    del pool.close


def ask(port, method, path, body=None, headers=None):
    """Return (status, content, headers) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    is_json = "json" in response.headers.get("content-type", "")
    return response.status, json.loads(content) if is_json else content.decode(), response.headers


def ask_json(port, path, **values):
    return ask(port, "POST", path, json.dumps(values), {"Content-Type": "application/json"})


def form(image, **fields):
    """Return a body and headers as a browser sends a file."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts.append(
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + image + b"\r\n--x--\r\n"
    )
    return b"".join(parts), {"Content-Type": "multipart/form-data; boundary=x"}


def encoded(path=PHOTOS[0]):
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def detector(detector_folder):
    return RegionCLIP.from_pretrained(detector_folder, device="cpu")


def test_detections_are_those_of_the_python_interface(port, detector):
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary([["cat", "kitten"], ["traffic cone"]])
    expected = detector.predict(threshold=0.0, topk=7, words_per_box=2)
    options = {"threshold": 0.0, "topk": 7, "words_per_box": 2}
    as_list = ask_json(port, "/detect", image=encoded(), words=["cat | kitten", "traffic cone"], **options)
    as_form = ask(port, "POST", "/detect", *form(PHOTOS[0].read_bytes(), words="cat | kitten, traffic cone", **options))
    for status, content, _ in (as_list, as_form):
        assert status == 200 and (content["width"], content["height"]) == expected.image_size[::-1]
        found = content["detections"]
        assert [entry["word"] for entry in found] == expected.names and len(found) == 7
        np.testing.assert_allclose([entry["box"] for entry in found], expected.boxes, atol=1e-3)
        np.testing.assert_allclose([entry["score"] for entry in found], expected.scores, atol=1e-6)
        assert found[0]["top_words"] == [[name, pytest.approx(score)] for name, score in expected.top_words(0)]


def test_boxes_are_named_and_vocabularies_have_names(port, detector):
    boxes = [[5, 5, 60, 60], [0, 0, 30, 80]]
    status, content, _ = ask_json(port, "/detect", image=encoded(), vocabulary="pets", boxes=boxes)
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary([["cat", "kitten"], ["dog"]])
    expected = detector.predict(boxes)
    assert status == 200 and [entry["word"] for entry in content["detections"]] == expected.names
    assert [entry["box"] for entry in content["detections"]] == boxes


def test_embeddings_of_words_and_regions_are_unit_vectors_of_one_space(port, detector):
    status, words, _ = ask_json(port, "/embed", words="cat, dog")
    assert status == 200 and words["names"] == ["cat", "dog"]
    expected = detector.set_vocabulary(["cat", "dog"]).class_embeddings()
    np.testing.assert_allclose(words["embeddings"], expected, atol=1e-5)
    boxes = [[5, 5, 60, 60]]
    status, regions, _ = ask(port, "POST", "/embed", *form(PHOTOS[0].read_bytes(), boxes=json.dumps(boxes)))
    detector.set_image(PHOTOS[0])
    own = detector.predict(boxes, embeddings=True).embeddings
    assert status == 200 and regions["boxes"] == boxes
    np.testing.assert_allclose(regions["embeddings"], own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-5)
    status, whole, _ = ask(port, "POST", "/embed", *form(PHOTOS[0].read_bytes()))
    assert status == 200 and len(whole["embeddings"]) == 1


def test_health_metrics_and_the_description(port):
    ask_json(port, "/detect", image=encoded(), words="cat")
    status, content, _ = ask(port, "GET", "/health")
    assert (
        status == 200 and content["status"] == "ok" and content["vocabularies"] == {"pets": 2} and content["dim"] == 32
    )
    status, text, _ = ask(port, "GET", "/metrics")
    assert 'regionclip_requests_total{path="/detect",status="200"}' in text and "regionclip_workers 1.0" in text
    status, content, _ = ask(port, "GET", "/openapi.json")
    assert {"/detect", "/embed", "/health", "/metrics"} <= content["paths"].keys()
    status, page, _ = ask(port, "GET", "/docs")
    scripts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert status == 200 and scripts and all(script.startswith("/") for script in scripts)  # no other host
    assert ask(port, "GET", next(script for script in scripts if script.endswith(".js")))[0] == 200
    body = content["paths"]["/detect"]["post"]["requestBody"]["content"]
    assert "words" in body["application/json"]["schema"]["properties"] and "multipart/form-data" in body


def bomb():
    """Return a PNG of a few kilobytes that claims 400 million pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = (20000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def truncated():
    return PHOTOS[0].read_bytes()[:300]


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GOOD = {"image": encoded(), "words": "cat"}


def as_json(**changes):
    return "POST", "/detect", json.dumps(GOOD | changes), JSON


HOSTILE = {
    "bomb": (("POST", "/detect", *form(bomb(), words="cat")), 413, "image"),
    "broken file": (("POST", "/detect", *form(truncated(), words="cat")), 422, "image"),
    "no image at all": (("POST", "/detect", *form(b"<script>", words="cat")), 422, "image"),
    "no base64": (as_json(image="%%%"), 422, "image"),
    "no image": (as_json(image=""), 422, "image"),
    "large body": (("POST", "/detect", b"x" * 400_000, JSON), 413, "request"),
    "no JSON": (("POST", "/detect", b"{", JSON), 400, "request"),
    "nested JSON": (("POST", "/detect", b"[" * 100_000, JSON), 400, "request"),
    "a list": (("POST", "/detect", b"[]", JSON), 400, "request"),
    "unknown field": (as_json(path="/etc/passwd"), 422, "path"),
    "many synonyms": (as_json(words="|".join(f"w{i}" for i in range(21))), 422, "words"),
    "long word": (as_json(words="x" * 501), 422, "words"),
    "many numbers": (as_json(boxes=[0] * 90_000), 422, "boxes"),
    "words of another kind": (as_json(words=[0] * 20), 422, "words.str"),
    "charset": (
        ("POST", "/detect", b"--x--", {"Content-Type": "multipart/form-data; boundary=x; charset=punycode"}),
        *(400, "charset"),
    ),
    "a field twice": (("POST", "/detect", b"words=cat&words=dog", FORM), 422, "words"),
    "a format that starts programs": (
        ("POST", "/detect", *form(b"%!PS-Adobe-3.0 EPSF-3.0", words="cat")),
        422,
        "image",
    ),
    "boxes and topk": (as_json(boxes=[[1, 1, 9, 9]], topk=1), 422, "topk"),
    "large topk": (as_json(topk=10**30), 422, "topk"),
    "boxes alone": (("POST", "/embed", json.dumps({"words": "cat", "boxes": [[1, 1, 9, 9]]}), JSON), 422, "boxes"),
    "many words": (as_json(words=["cat"] * 21), 422, "words"),
    "equal words": (as_json(words=["cat", "Cat"]), 422, "vocabulary"),
    "no words": (as_json(words=""), 422, "words or vocabulary"),
    "a path as a vocabulary": (as_json(words="", vocabulary="../../etc/passwd"), 422, "vocabulary"),
    "url": (as_json(image="", url="http://169.254.169.254/latest"), 422, "url"),
    "half of a character": (as_json(words="", vocabulary="\ud800"), 422, "vocabulary"),
    "threshold": (as_json(threshold="high"), 422, "threshold"),
    "topk": (as_json(topk=0), 422, "topk"),
    "three numbers": (as_json(boxes=[[1, 2, 3]]), 422, "boxes"),
    "boxes outside": (as_json(boxes=[[1e6, 1e6, 2e6, 2e6]]), 422, "boxes, row 0"),
    "many boxes": (as_json(boxes=[[0, 0, 5, 5]] * 11), 422, "boxes"),
    "field of a form": (("POST", "/detect", *form(PHOTOS[0].read_bytes(), words="cat", topk="many")), 422, "topk"),
    "other method": (("GET", "/detect", None, {}), 405, "GET /detect"),
    "path traversal": (("GET", "/../../etc/passwd", None, {}), 404, "GET /../../etc/passwd"),
}


def test_hostile_requests_get_their_codes_while_others_go_on(port):
    with ThreadPoolExecutor(8) as threads:
        good = [threads.submit(ask_json, port, "/detect", **GOOD) for _ in range(12)]
        hostile = {name: threads.submit(ask, port, *request) for name, (request, _, _) in HOSTILE.items()}
        for name, answer in hostile.items():
            status, content, _ = answer.result()
            _, expected, what = HOSTILE[name]
            assert status == expected, (name, content)
            assert set(content["error"]) == {"what", "expected", "actual", "fix"}, name
            assert content["error"]["what"] == what and content["error"]["fix"], (name, content)
        assert [answer.result()[0] for answer in good] == [200] * 12


def send_slowly(port, headers, parts, pause):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # the server has closed the connection, as it should
        answer = client.recv(4000)
    return int(answer.split()[1])


def test_slow_and_endless_clients_are_cut_off(pool, monkeypatch):
    monkeypatch.setattr(pool, "close", lambda seconds=1: True)
    port, stop = serve(create_app(pool, Limits(bytes=300_000, seconds=1.0)))
    assert send_slowly(port, b"Content-Length: 1000\r\n", [b"x"] * 15, 0.1) == 408
    chunk = b"4e20\r\n" + b"x" * 20000 + b"\r\n"
    assert send_slowly(port, b"Transfer-Encoding: chunked\r\n", [chunk] * 20, 0.0) == 413
    assert ask_json(port, "/detect", **GOOD)[0] == 200
    stop()


def test_an_image_that_does_not_arrive_is_not_waited_for(pool, monkeypatch):
    """Also while it waits for others to be fetched."""
    monkeypatch.setattr(pool, "close", lambda seconds=1: True)
    monkeypatch.setattr("regionclip.web.server.FETCHERS", 1)
    monkeypatch.setattr("regionclip.web.server.fetch_image", lambda *_: time.sleep(3))
    port, stop = serve(create_app(pool, Limits(bytes=300_000, seconds=0.5), allow_urls=True))
    body = {**GOOD, "image": "", "url": "http://host/a.jpg"}
    with ThreadPoolExecutor(3) as threads:
        start = time.monotonic()
        answers = [threads.submit(ask_json, port, "/detect", **body) for _ in range(3)]
        found = [answer.result()[:2] for answer in answers]
    assert time.monotonic() - start < 2.5
    assert [(status, content["error"]["what"]) for status, content in found] == [(503, "url")] * 3
    stop()


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nX: 1\r\n"])
def test_headers_have_a_time_limit(pool, monkeypatch, sent):
    monkeypatch.setattr(pool, "close", lambda seconds=1: True)
    monkeypatch.setattr(TimedHeaders, "seconds", 0.3)
    port, stop = serve(create_app(pool, LIMITS), http=TimedHeaders)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(sent)
        answer = b"".join(iter(lambda: slow.recv(4000), b""))  # until the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["what"] == "headers"
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(2):
        kept.request("GET", "/health")
        answer = kept.getresponse()
        assert answer.status == 200 and answer.read()
    kept.sock.sendall(sent or b"G")  # the third request of the connection is slow
    assert kept.sock.recv(4000).startswith(b"HTTP/1.1 408")
    stop()


def test_a_key_is_asked_for_and_clients_have_a_limit(pool, monkeypatch):
    monkeypatch.setattr(pool, "close", lambda seconds=1: True)
    port, stop = serve(create_app(pool, Limits(bytes=300_000, seconds=5.0, per_client=2), api_key="secret"))
    assert ask(port, "GET", "/health")[0] == 200
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        status, content, _ = ask(port, "POST", "/detect", json.dumps(GOOD), JSON | headers)
        assert status == 401 and content["error"]["what"] == "API key"
    for headers in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
        assert ask(port, "POST", "/detect", json.dumps(GOOD), JSON | headers)[0] == 200
    with ThreadPoolExecutor(8) as threads:
        key = JSON | {"X-API-Key": "secret"}
        codes = [
            answer.result()
            for answer in [threads.submit(ask, port, "POST", "/detect", json.dumps(GOOD), key) for _ in range(8)]
        ]
    assert {code for code, _, _ in codes} == {200, 429}
    assert all(headers["Retry-After"] == "1" for code, _, headers in codes if code == 429)
    stop()


def test_the_options_of_the_command_are_in_force(detector_folder, tmp_path):
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    port = free_port()
    options = {"--vocabulary": "pets=pets.txt", "--max-words": 2, "--max-megabytes": 0.3, "--per-client": 4}
    flags = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "regionclip", "serve", "--model", str(detector_folder), "--allow-urls", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "REGIONCLIP_PORT": str(port), "REGIONCLIP_API_KEY": "secret"}
    key = JSON | {"X-API-Key": "secret"}

    def post(headers=key, **values):
        status, content, _ = ask(port, "POST", "/detect", json.dumps(GOOD | values), headers)
        return status, content

    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert "Serving" in process.stdout.readline()
        try:
            assert post(JSON)[0] == 401 and post()[0] == 200
            status, content = post(words="", vocabulary="pets", threshold=0)
            assert status == 200 and {found["word"] for found in content["detections"]} <= {"cat", "dog"}
            assert post(words=["a", "b", "c"])[0] == 422
            assert post(image="A" * 400_000)[0] == 413
            status, content = post(image="", url="http://localhost/a.jpg")
            assert (status, content["error"]["expected"]) == (422, "an address of the public internet")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_command_serves_until_a_signal_and_finishes_what_it_has(detector_folder, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "regionclip", "serve", "--model", str(detector_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "REGIONCLIP_PORT": str(port)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert "Serving" in process.stdout.readline()
        assert ask(port, "GET", "/health")[0] == 200
        taken = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert taken.returncode == 2 and f"--port {port}: expected an address and a port" in taken.stderr
        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(ask_json, port, "/detect", **GOOD) for _ in range(4)]
            deadline = time.monotonic() + 30
            while ask(port, "GET", "/health")[1]["queue"] < 1 and time.monotonic() < deadline:
                if all(answer.done() for answer in answers):
                    answers = [threads.submit(ask_json, port, "/detect", **GOOD) for _ in range(4)]
            process.send_signal(signal.SIGTERM)
            assert [answer.result()[0] for answer in answers] == [200] * 4
        assert "Stopped: all requests" in process.stdout.read()
        assert process.wait(60) == 0
