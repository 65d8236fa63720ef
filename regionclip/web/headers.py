"""A time limit for the headers of a request, which uvicorn does not have."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from regionclip.errors import Problem
from regionclip.web.errors import error_content

SECONDS = 10.0
"""From the first byte of a request, or the connection, to the end of the headers."""


class TimedHeaders(H11Protocol):
    """HTTP/1.1 that answers 408 to headers that do not arrive in time, and closes the connection."""

    seconds = SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Run the timer while headers are incomplete; between requests, uvicorn's own limit holds."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._refuse)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        self._timer = None
        if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            problem = Problem(
                "headers", f"all within {self.seconds:g} seconds", "a part of them", "send the request at once"
            )
            body = json.dumps(error_content(problem)).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            events: tuple[Any, ...] = (
                h11.Response(status_code=408, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
