"""The HTTP server: FastAPI in front of worker processes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import regionclip
from regionclip.web.addresses import fetch_image
from regionclip.web.errors import RequestError, content_of, request_error
from regionclip.web.guards import STARTED, Guards, Limits
from regionclip.web.jobs import Job
from regionclip.web.metrics import ServerMetrics
from regionclip.web.pool import WorkerPool
from regionclip.web.schema import DetectRequest, EmbedRequest, detect_job, embed_job, from_form, image_bytes, parse

MAX_FIELDS = 20

MakeJob = Callable[[Any, bytes, Limits], Job]
"""Makes a job of a parsed request, the bytes of its image, and the limits."""

FETCHERS = 8
"""Images that are fetched at once."""


def create_app(pool: WorkerPool, limits: Limits, *, api_key: str = "", allow_urls: bool = False) -> FastAPI:
    """Return the application; the pool is started before, and closed when the application stops.

    Args:
        pool: its workers answer.
        limits: of requests.
        api_key: key that clients have to send; empty lets everybody in.
        allow_urls: accept images by URL, from the public internet.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.close)

    app = FastAPIOffline(
        title="regionclip",
        version=regionclip.__version__,
        description="Find objects in images by words.",
        lifespan=lifespan,
    )
    metrics = ServerMetrics(pool)
    requests = _Requests(limits, allow_urls=allow_urls)
    _add_error_handlers(app)
    _add_measurement(app, metrics)
    app.add_middleware(Guards, limits=limits, api_key=api_key, refused=metrics.count)

    async def answer(request: Request, kind: type[BaseModel], make: MakeJob) -> dict[str, Any]:
        job = await requests.job(request, kind, make)
        return content_of(await pool.answer(job, request.scope[STARTED]))

    @app.post("/detect", openapi_extra=_body_of(DetectRequest), summary="Detect objects by words, or name boxes")
    async def detect(request: Request) -> dict[str, Any]:
        return await answer(request, DetectRequest, detect_job)

    @app.post("/embed", openapi_extra=_body_of(EmbedRequest), summary="Embed words, or regions of an image")
    async def embed(request: Request) -> dict[str, Any]:
        return await answer(request, EmbedRequest, embed_job)

    @app.get("/health", summary="Whether the server can answer, and what it serves")
    async def health() -> JSONResponse:
        is_well = pool.alive == pool.settings.workers
        content = {"status": "ok" if is_well else "restarting", "workers": pool.alive, "queue": pool.queued}
        return JSONResponse({**content, **pool.description}, 200 if pool.alive else 503)

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


class _Requests:
    """Reads requests as JSON or forms."""

    def __init__(self, limits: Limits, *, allow_urls: bool) -> None:
        self.limits, self.allow_urls = limits, allow_urls
        self._fetchers = ThreadPoolExecutor(FETCHERS)  # of its own: slow addresses hold up nothing else

    async def job(self, request: Request, kind: type[BaseModel], make: MakeJob) -> Job:
        """Return the job of a request; raises `RequestError` for one that is invalid."""
        values, image = await self._values(request)
        parsed = parse(kind, values, self.limits)
        given = [name for name, value in (("image", image or parsed.image), ("url", parsed.url)) if value]
        if len(given) > 1:
            raise request_error(422, "image and url", "one of them", "both", "leave one out")
        if parsed.url:
            image = await self._fetch(parsed.url)
        return make(parsed, image or image_bytes(parsed), self.limits)

    async def _values(self, request: Request) -> tuple[dict[str, Any], bytes]:
        """Return the JSON values of a request, and the file of a form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            return await self._form(request)
        try:
            values = await request.json()
        except (ValueError, RecursionError) as error:
            expected, fix = "JSON, or a form with a file", "see /docs for the fields"
            raise request_error(400, "request", expected, kind or "no content type", fix) from error
        if not isinstance(values, dict):
            raise request_error(400, "request", "a JSON object", type(values).__name__, "see /docs for the fields")
        return values, b""

    async def _form(self, request: Request) -> tuple[dict[str, Any], bytes]:
        """Return the values of a form, and its file `image`; no field may come twice."""
        charset = re.search(r"charset=([^;]+)", request.headers["content-type"], re.IGNORECASE)
        if charset and charset[1].strip(' "').lower() != "utf-8":
            raise request_error(400, "charset", "utf-8", charset[1][:40], "send the form in UTF-8")
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=self.limits.bytes)
        fields: dict[str, str] = {}
        image = b""
        for name, value in form.multi_items():
            if name in fields or (name == "image" and image):
                raise request_error(422, name, "one value", "several", "send one, such as words with commas")
            if isinstance(value, UploadFile) != (name == "image"):
                expected = "a file" if name == "image" else "text"
                raise request_error(422, name, expected, "the other", "send only image as a file")
            if isinstance(value, UploadFile):
                image = await value.read()
            else:
                fields[name] = value
        return from_form(fields), image

    async def _fetch(self, url: str) -> bytes:
        if not self.allow_urls:
            fix = "send the image itself"
            raise request_error(422, "url", "no url: this server does not fetch images", url[:200], fix)
        seconds = self.limits.seconds
        fetched = asyncio.get_running_loop().run_in_executor(
            self._fetchers, fetch_image, url, self.limits.bytes, seconds
        )
        try:
            async with asyncio.timeout(seconds):  # also while others are fetched
                return await fetched
        except TimeoutError as error:
            expected, fix = f"an image within {seconds:g} seconds", "send the image itself, or try again later"
            raise request_error(503, "url", expected, "none", fix, {"Retry-After": "1"}) from error


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        fix = "see /docs for the paths and their fields"
        what, expected = f"{request.method} {request.url.path[:200]}", "a request that this server knows"
        refusal = request_error(error.status_code, what, expected, str(error.detail)[:200], fix)
        return JSONResponse(refusal.content, error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        fix = "tell the operator, who has it in the log"
        return JSONResponse(request_error(500, "server", "an answer", "an internal error", fix).content, 500)


def _add_measurement(app: FastAPI, metrics: ServerMetrics) -> None:
    @app.middleware("http")
    async def measured(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await answer(request)
        metrics.count(request.url.path, response.status_code, time.perf_counter() - start)
        return response


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body, as JSON or as a form with a file."""
    schema = kind.model_json_schema()
    form = {**schema, "properties": {**schema["properties"], "image": {"type": "string", "format": "binary"}}}
    contents = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": contents}}
