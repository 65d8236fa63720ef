"""Images by URL: nothing of a private network, and limits of size and time."""

import http.server
import threading
import time

import pytest

from regionclip.web import addresses
from regionclip.web.addresses import fetch_image, is_public
from regionclip.web.errors import RequestError


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/headers":
            for byte in b"HTTP/1.0 200 OK\r\n" * 20:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b"x")
                time.sleep(0.1)
            return
        targets = {
            "/loop": "/loop",
            "/once": "/image?a=b",
            "/inside": "http://127.0.0.2/secret",
            "/file": "file:///etc/passwd",
        }
        self.send_response(302 if self.path in targets else 404 if self.path == "/none" else 200)
        if self.path in targets:
            self.send_header("Location", targets[self.path])
        self.end_headers()
        self.wfile.write(f"content of {self.path}".encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def refused(url, **options):
    with pytest.raises(RequestError) as error:
        fetch_image(url, **{"max_bytes": 1000, "seconds": 5.0} | options)
    return error.value.status, error.value.problem.actual


def test_an_image_is_fetched_through_redirects(site):
    assert fetch_image(f"{site}/once", 1000, 5.0, allow_private=True) == b"content of /image?a=b"


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        *(("/loop", {}, 422), ("/none", {}, 422), ("/file", {}, 422), ("/headers", {"seconds": 0.5}, 422)),
        *(("/image", {"max_bytes": 3}, 413), ("/slow", {"seconds": 0.5}, 422)),
    ],
)
def test_what_is_no_image_is_refused(site, path, options, status):
    start = time.monotonic()
    assert refused(f"{site}{path}", allow_private=True, **options)[0] == status
    assert time.monotonic() - start < 3


def test_private_addresses_are_refused_by_name_number_and_redirect(site, monkeypatch):
    port = int(site.rpartition(":")[2])
    monkeypatch.setattr(addresses, "_PORTS", {"http": port})
    asked = []
    monkeypatch.setattr(Handler, "do_GET", lambda handler: asked.append(handler.path))
    hosts = (
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.7",
        "169.254.169.254",
    )
    for host in hosts:
        with pytest.raises(RequestError) as error:
            fetch_image(f"http://{host}:{port}/image", 1000, 5.0)
        assert error.value.problem.expected == "an address of the public internet", host
    assert not asked
    monkeypatch.undo()
    allowed = []

    def only_first(address):
        allowed.append(address)
        return len(allowed) == 1

    monkeypatch.setattr(addresses, "is_public", only_first)
    monkeypatch.setattr(addresses, "_PORTS", {"http": int(site.rpartition(":")[2])})
    assert refused(f"{site}/inside") == (422, "127.0.0.2")


@pytest.mark.parametrize(
    "url", ["", "image.jpg", "file:///etc/passwd", "ftp://example.com/a", "http://", "http://[", "gopher://x/"]
)
def test_other_schemes_and_no_addresses_are_refused(url):
    assert refused(url)[0] == 422


def test_other_ports_than_those_of_the_web_are_refused():
    assert refused("http://8.8.8.8:22/") == (422, "22")


def test_public_addresses():
    private = [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "fec0::1", "::127.0.0.1", "::ffff:0:127.0.0.1"),
        *("::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "fe80::1%eth0"),
    ]
    assert not [address for address in private if is_public(address)]
    assert all(is_public(address) for address in ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"))
