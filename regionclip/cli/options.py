"""Options shared by several commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from regionclip import RegionCLIP, VocabularyOptions

MODEL_HELP = "Detector: emoji, a published name, a folder with config.yaml and weights, or a file of weights."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Config = Annotated[str, typer.Option(help="Config (YAML) of a file of weights.")]
TextWeights = Annotated[str, typer.Option(help="Checkpoint with the text encoder, if the detector's has none.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read files that can run code.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override of the config (docs/config.md); repeatable.")
]
Templates = Annotated[str, typer.Option(help="Prompts: regionclip, cora, single, name, ralf, raf, or a text file.")]
Synonyms = Annotated[str, typer.Option(help="Synonyms (a | b) count by their max or their mean.")]
Host = Annotated[
    str,
    typer.Option(envvar="REGIONCLIP_HOST", help="Address to listen on; 0.0.0.0 is every network of this machine."),
]
Port = Annotated[int, typer.Option(min=1, max=65535, envvar="REGIONCLIP_PORT", help="Port to listen on.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download what is missing without asking.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the table of loaded weights.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def load_detector(
    model: str,
    config: str,
    overrides: list[str],
    text_weights: str,
    device: str,
    *,
    trust_pickle: bool,
    agreed: bool = False,
) -> RegionCLIP:
    """Return the detector of the options; raises `UserError` if they are invalid.

    The files of a published one are downloaded, after a question if they are large; `agreed` (--yes) answers it.
    """
    from regionclip import RegionCLIP
    from regionclip.hub.default import default_model

    name = model or default_model().name
    fetch_files(name, agreed=agreed)
    return RegionCLIP.from_pretrained(
        name,
        config=config,
        overrides=override_pairs(overrides),
        text_weights=text_weights,
        device=device,
        trust_pickle=trust_pickle,
    )


def fetch_files(model: str, source: str = "", *, agreed: bool) -> None:
    """Download what a published detector lacks on this machine, after a question if that is much.

    Raises:
        UserError: no consent, or a file that no source has.
    """
    from regionclip.hub.fetching import fetch_all, one_error, require_consent
    from regionclip.hub.zoo import MODELS, files_of

    if model not in MODELS:
        return
    files = files_of(MODELS[model])
    require_consent(files, agreed=agreed)
    if errors := fetch_all(files, source):
        raise one_error(errors)


def override_pairs(overrides: list[str]) -> list[str]:
    """Return alternating keys and values; raises `UserError` for an override that is not KEY=VALUE."""
    from regionclip.errors import user_error

    pairs = [pair.partition("=") for pair in overrides]
    wrong = [key for key, mark, _ in pairs if not mark]
    if wrong:
        raise user_error(f"--set {wrong[0]}", "KEY=VALUE", wrong[0], "such as --set INPUT.MIN_SIZE_TEST=400")
    return [part for key, _, value in pairs for part in (key, value)]


def vocabulary_options(templates: str, synonyms: str) -> VocabularyOptions:
    """Return how class names are embedded; raises `UserError` for an unknown value of `synonyms`."""
    from regionclip.inference.vocabularies import VocabularyOptions

    return VocabularyOptions(templates, cast(Literal["max", "mean"], synonyms))


def print_json(content: dict[str, Any]) -> None:
    """Print one line of JSON; paths become strings."""
    line = json.dumps(content, ensure_ascii=False, default=lambda value: str(Path(value)))
    print(line.encode(errors="backslashreplace").decode())
