"""Limits before a request is read: its size, its time, its sender, and its key."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from regionclip.web.errors import RequestError, request_error

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STARTED = "regionclip.started"
"""Key of a request's scope: `time.monotonic()` when it began to arrive."""

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key, for load balancers."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    bytes: int = 20_000_000
    """Size of the body."""
    seconds: float = 30.0
    """Time to send it."""
    per_client: int = 16
    """Requests of one address at a time."""
    words: int = 2000
    """Class names of a request."""
    boxes: int = 1000


class Guards:
    """ASGI middleware that reads the body within its limits and passes it on whole."""

    def __init__(self, app: App, *, limits: Limits, api_key: str, refused: Callable[[str, int], None]) -> None:
        """Guard an application.

        Args:
            app: gets the requests that are let in.
            limits: of a request.
            api_key: that clients have to send; empty lets everybody in.
            refused: is told path and status of each other request.
        """
        self.app, self.limits, self.api_key, self.refused = app, limits, api_key.encode(), refused
        self._active: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = (scope.get("client") or ("",))[0]
        self._active[client] += 1
        scope[STARTED] = time.monotonic()
        try:
            self._check(scope, client)
            body = await self._read(scope, receive)
        except RequestError as error:
            self.refused(scope["path"], error.status)
            await _refuse(error, send)
        except _GoneError:
            logger.info("A client left before its request was complete")
        else:
            await self.app(scope, _replay(body, receive), send)
        finally:
            self._active[client] -= 1
            if not self._active[client]:
                del self._active[client]

    def _check(self, scope: Scope, client: str) -> None:
        headers = dict(scope["headers"])
        if self.api_key and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.api_key):
                actual = "another" if given else "none"
                fix = "send it as X-API-Key, or as Authorization: Bearer"
                raise request_error(401, "API key", "the key of this server", actual, fix)
        if self._active[client] > self.limits.per_client:
            expected, actual = f"at most {self.limits.per_client} requests at a time", str(self._active[client])
            raise request_error(429, "client", expected, actual, "wait for answers", {"Retry-After": "1"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.bytes:
            raise self._too_large(length.decode(errors="replace"))

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limits.bytes:
                        raise self._too_large(f"more than {self.limits.bytes}")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError as error:
            expected, actual = f"the whole request within {self.limits.seconds:g} seconds", f"{size} bytes"
            raise request_error(408, "request", expected, actual, "send it faster, or a smaller image") from error

    def _too_large(self, actual: str) -> RequestError:
        return request_error(413, "request", f"at most {self.limits.bytes} bytes", actual, "send a smaller image")


class _GoneError(Exception):
    """The client closed its connection."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body, then what comes after it."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(error: RequestError, send: Send) -> None:
    """Send an error before the body is read; the connection is closed, since the rest of the body may follow."""
    content = json.dumps(error.content).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
