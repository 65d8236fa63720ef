"""A local file server that can be slow, broken, busy, wrong, or elsewhere."""

import hashlib
import http.server
import threading
from dataclasses import dataclass, field


@dataclass
class Behavior:
    """What goes wrong; lists are used up from their end, one entry a request."""

    break_after: list = field(default_factory=list)
    """Bytes after which the connection drops; None for the whole."""
    errors: list = field(default_factory=list)
    """HTTP errors: a code, or (code, Retry-After)."""
    lie: str = ""
    """`whole`: 206 with the whole file; `shifted`: 206 from another byte; `page`: a web page, called a file."""
    tagged: bool = True
    linked: bool = True
    """Say the file's hash on a redirect, as the hub does."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of its server, in parts if asked."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, with_body=True):
        server, behavior = self.server, self.server.behavior
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        server.tokens.append(self.headers.get("Authorization"))
        if self.path in server.redirects:
            self._redirect(server.redirects[self.path], behavior)
            return
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
        elif behavior.errors:
            self._fail(behavior.errors.pop())
        elif behavior.lie == "page":
            self._send(200, b"<!DOCTYPE html><html>Quota exceeded</html>", {}, with_body)
        else:
            self._serve(content, behavior, with_body)

    def _redirect(self, target, behavior):
        url, content = target
        self.send_response(302)
        self.send_header("Location", url)
        if behavior.linked:
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _fail(self, error):
        code, wait = error if isinstance(error, tuple) else (error, None)
        self.send_response(code)
        if wait is not None:
            self.send_header("Retry-After", str(wait))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, content, behavior, with_body):
        start, tag = 0, f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, tag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        headers = {"ETag": tag} if behavior.tagged else {}
        if start and behavior.lie == "whole":
            headers["Content-Range"] = f"bytes 0-{len(content) - 1}/{len(content)}"
            self._send(206, content, headers, with_body)
        elif start:
            said = start + (100 if behavior.lie == "shifted" else 0)
            headers["Content-Range"] = f"bytes {said}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers, with_body)
        else:
            self._send(200, content, headers, with_body)

    def _send(self, code, content, headers, with_body):
        behavior = self.server.behavior
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            end = behavior.break_after.pop() if behavior.break_after else None
            self.wfile.write(content[:end])


def start_server():
    """Start a server on a free port; `files` by path, `redirects` to (address, content), `requests` and `tokens`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.redirects, server.requests, server.tokens = {}, {}, [], []
    server.behavior = Behavior()
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
