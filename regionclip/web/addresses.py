"""Images by URL, where a server allows them: never from a private network, whatever the address resolves to."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urljoin, urlsplit

from regionclip.web.errors import RequestError, request_error

MAX_REDIRECTS = 3

FIX = "send the image itself"

_CHUNK = 65536

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All others embed or translate addresses, such as NAT64, or are local."""

_PORTS = {"http": 80, "https": 443}


def fetch_image(url: str, max_bytes: int, seconds: float, *, allow_private: bool = False) -> bytes:
    """Return the content of a URL.

    The address that was checked is the one that is connected to, so that a name cannot resolve to another later;
    redirects are checked in the same way.

    Args:
        url: http or https.
        max_bytes: size limit.
        seconds: time limit of all.
        allow_private: allow addresses of private networks, for tests.

    Raises:
        RequestError: 422 for another scheme, a private address or no image there; 413 for a larger file.
    """
    limit = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        try:
            connection = _connection(url, max(limit - time.monotonic(), 0.01), allow_private)
            with _closed_after(connection, limit - time.monotonic()):
                response = connection.getresponse()
                if response.status not in (301, 302, 303, 307, 308):
                    return _body(response, url, max_bytes)
            url = urljoin(url, response.headers.get("Location", ""))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise request_error(422, "url", "an address that can be read", f"{url[:200]} ({error})", FIX) from error
    raise request_error(422, "url", f"at most {MAX_REDIRECTS} redirects", "more", FIX)


@contextmanager
def _closed_after(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Close a connection at the end of a block, or after a time that a server which drips bytes cannot exceed."""
    is_late, connected = threading.Event(), connection.sock

    def shut_down() -> None:
        is_late.set()
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(seconds, 0.01), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
        if is_late.is_set():
            raise TimeoutError("too slow")
    finally:
        timer.cancel()
        connection.close()


def _connection(url: str, seconds: float, allow_private: bool) -> http.client.HTTPConnection:
    """Return a connection that was asked for a URL."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise request_error(422, "url", "an http or https address", url[:200], FIX)
    port = parts.port or _PORTS[parts.scheme]
    if port not in _PORTS.values() and not allow_private:
        raise request_error(422, "url", "port 80 or 443", str(port), FIX)
    connection = _connect(parts.scheme, parts.hostname, port, seconds, allow_private)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Host": parts.netloc.rpartition("@")[2]})
    return connection


def _body(response: http.client.HTTPResponse, url: str, max_bytes: int) -> bytes:
    if response.status != 200:
        raise request_error(422, "url", "an image", f"status {response.status} of {url[:200]}", FIX)
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise request_error(413, "url", f"at most {max_bytes} bytes", "more", "send a smaller image")
    if response.length:  # less than was announced: the connection was closed
        raise TimeoutError("too slow, or cut off")
    return bytes(content)


def _connect(scheme: str, host: str, port: int, seconds: float, allow_private: bool) -> http.client.HTTPConnection:
    """Return a connection to an address of a host that is not private."""
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    addresses = [str(address) for address in found]
    refused = [address for address in addresses if not (allow_private or is_public(address))]
    if refused or not addresses:
        raise _private(host)
    connection = http.client.HTTPConnection(addresses[0], port, timeout=seconds)
    connection.connect()
    if scheme == "https":
        connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
    return connection


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also as an IPv4 address within IPv6."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv4Address):
        return number.is_global and not number.is_multicast
    inner = number.ipv4_mapped or number.sixtofour
    if inner is not None:
        return is_public(str(inner))
    return number.is_global and number in _GLOBAL_UNICAST


def _private(host: str) -> RequestError:
    return request_error(422, "url", "an address of the public internet", host[:200], FIX)
