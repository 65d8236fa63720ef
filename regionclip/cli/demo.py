"""`regionclip demo`: the detector in a browser."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip import RegionCLIP

SAMPLES = ("datasets/demo_scenes", "datasets/demo_images")

WORDS = "carrot, wood, telescope, dog, person"


def demo(
    model: shared.Model = "",
    words: Annotated[str, typer.Option(help="Words in the text box at the start.")] = WORDS,
    host: shared.Host = "127.0.0.1",
    port: shared.Port = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    share: Annotated[bool, typer.Option("--share", help="Also make a public address, by Gradio's server.")] = False,
    device: shared.Device = "",
    yes: shared.Yes = False,
) -> None:
    """Find objects in a browser: drop an image, type words, move the threshold, draw an example.

    Works offline; nothing leaves this machine without --share. Example:

    regionclip demo --model clip_rn50
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console(weight_tables=False)
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Serve the page until a signal, and return the exit code."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from regionclip.engine.command import DONE
    from regionclip.errors import user_error
    from regionclip.files import resolve_path

    try:
        from regionclip.web.demo import DemoDetector, build_page, theme
    except ImportError as error:
        raise user_error("regionclip demo", "Gradio", str(error), 'pip install "regionclip[demo]"') from error
    models = _models(args)
    detector = DemoDetector(lambda name: _load(name, args))
    detector.loaded[models[0]] = _load(models[0], args)
    samples = [path for folder in SAMPLES for path in sorted(resolve_path(folder).glob("*.jpg"))]
    page = build_page(detector, models, samples, args.words)
    page.queue(default_concurrency_limit=None)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        inbrowser=args.browser,
        allowed_paths=[str(resolve_path(folder)) for folder in SAMPLES],
        theme=theme(),
    )
    return DONE


def _models(args: Namespace) -> list[str]:
    """Return the detectors to choose from: the default, then those on this machine."""
    from regionclip.hub.default import default_model, is_here
    from regionclip.hub.zoo import EMBEDDED, MODELS

    first = args.model or default_model().name
    shared.fetch_files(first, agreed=args.yes)
    here = [name for name, model in MODELS.items() if is_here(model)]
    return list(dict.fromkeys([first, EMBEDDED, *here]))


def _load(name: str, args: Namespace) -> RegionCLIP:
    return shared.load_detector(name, "", [], "", args.device, trust_pickle=False, agreed=args.yes)
