"""`regionclip serve`: detection over HTTP."""

from __future__ import annotations

import os
import signal
import socket
from argparse import Namespace
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip.web.jobs import WorkerSettings

KEY = "REGIONCLIP_API_KEY"
"""Environment variable of the API key."""


def serve(
    model: shared.Model = "",
    host: shared.Host = "127.0.0.1",
    port: shared.Port = 8000,
    vocabulary: Annotated[
        list[str], typer.Option(metavar="NAME[=FILE]", help="A vocabulary that clients may name; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Processes with a detector; one is enough for a GPU.")] = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Images encoded at once; more than 1 is for GPUs, and changes the last digits.")
    ] = 1,
    batch_wait: Annotated[float, typer.Option(min=0, help="Milliseconds that a batch waits for images.")] = 5.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused with 503.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds from a request to its answer, else 503.")] = 60.0,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Size of a request, else 413.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Pixels of an image, else 413.")] = 50.0,
    max_words: Annotated[int, typer.Option(min=1, help="Words of a request, else 422.")] = 2000,
    per_client: Annotated[int, typer.Option(min=1, help="Requests of one address at a time, else 429.")] = 16,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from public addresses.")] = False,
    api_key: Annotated[str, typer.Option(envvar=KEY, help="Key that clients have to send.")] = "",
    device: shared.Device = "",
    config: shared.Config = "",
    text_weights: shared.TextWeights = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Answer detection requests over HTTP.

    POST /detect and /embed take JSON with a base64 image, or a form with a file; /docs describes them. GET /health and
    /metrics (Prometheus). Ctrl-C and SIGTERM finish what has arrived. Example:

    regionclip serve --model clip_rn50 --vocabulary coco --port 8000
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console(weight_tables=False)
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Serve until a signal, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.errors import user_error

    try:
        import uvicorn

        from regionclip.web.server import create_app
    except ImportError as error:
        fix = 'pip install "regionclip[serve]"'
        raise user_error("regionclip serve", "the libraries of a server", str(error), fix) from error
    from regionclip.web.guards import Limits
    from regionclip.web.headers import TimedHeaders
    from regionclip.web.pool import PoolSettings, WorkerPool

    settings = PoolSettings(args.workers, args.batch, args.batch_wait / 1000, args.queue, args.timeout)
    pool = WorkerPool(_worker_settings(args), settings)
    listening = _listen(args.host, args.port)
    pool.start()
    limits = Limits(
        bytes=int(args.max_megabytes * 1e6), seconds=args.timeout / 2, per_client=args.per_client, words=args.max_words
    )
    app = create_app(pool, limits, api_key=args.api_key, allow_urls=args.allow_urls)
    print(f"Serving {pool.description['model']} on http://{args.host}:{args.port}, described in /docs", flush=True)
    config = uvicorn.Config(
        app,
        http=TimedHeaders,
        log_level="warning",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(args.timeout) + 1,
        limit_concurrency=max(4 * args.queue, 256),
        server_header=False,
        proxy_headers=False,  # else a client says itself what its address is
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn stops on them, and raises them again after it has
    uvicorn.Server(config).run(sockets=[listening])
    is_done = pool.close()
    print("Stopped: all requests that had arrived are answered" if is_done else "Stopped: some requests had no answer")
    return DONE


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything is loaded; raises `UserError` if the port is taken."""
    from regionclip.errors import user_error

    try:
        return socket.create_server((host, port), backlog=2048, reuse_port=False)
    except OSError as error:
        expected, fix = "an address and a port that are free", "name another --port or --host"
        raise user_error(f"--host {host} --port {port}", expected, str(error.strerror), fix) from error


def _worker_settings(args: Namespace) -> WorkerSettings:
    from regionclip.hub.default import default_model
    from regionclip.web.jobs import WorkerSettings

    name = args.model or default_model().name
    shared.fetch_files(name, agreed=args.yes)
    options = {"config": args.config, "text_weights": args.text_weights, "trust_pickle": args.trust_pickle}
    options["overrides"] = shared.override_pairs(args.overrides)
    named = dict(item.partition("=")[::2] for item in args.vocabulary)
    vocabularies = {name: file or name for name, file in named.items()}
    threads = max((os.cpu_count() or 1) // args.workers, 1) if args.workers > 1 else 0
    return WorkerSettings(name, args.device, options, vocabularies, int(args.max_megapixels * 1e6), threads)
