"""`regionclip concepts`: embed class names into a file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip.clip.embedder import NameEmbedder


def concepts(
    words: Annotated[str, typer.Option(help='Words: "cat, traffic cone".')] = "",
    vocabulary: Annotated[
        str, typer.Option(help="coco, coco65, coco48, coco17, lvis, lvis866, emoji, or a text file of words.")
    ] = "",
    templates: shared.Templates = "regionclip",
    synonyms: shared.Synonyms = "max",
    output: Annotated[
        Path, typer.Option(help="File to write: .safetensors, or .pth as upstream (names beside it in .txt).")
    ] = Path("output/concepts.safetensors"),
    model: shared.Model = "",
    weights: Annotated[str, typer.Option(help="Checkpoint with the text encoder, instead of a detector.")] = "",
    architecture: Annotated[
        str, typer.Option(help="CLIP size of it: RN50 unless given, RN50x4, ... or an open_clip JSON file.")
    ] = "",
    device: shared.Device = "",
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Embed words, for later use.

    The file goes to `detect --vocabulary` or into a config. What was embedded before comes from a cache. Examples:

    regionclip concepts --words "cat, dog" --output pets.safetensors

    regionclip concepts --vocabulary words.txt --weights pretrained_ckpt/clip/RN50.pt --output words.pth
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.errors import user_error
    from regionclip.inference.vocabularies import make_vocabulary, save_vocabulary, split_words

    if bool(args.words) == bool(args.vocabulary):
        actual = "both" if args.words else "neither"
        raise user_error("--words and --vocabulary", "one of them", actual, "see regionclip concepts --help")
    if args.output.suffix not in (".safetensors", ".pth"):
        raise user_error(f"--output {args.output}", ".safetensors or .pth", args.output.suffix or "none", "rename it")
    options = shared.vocabulary_options(args.templates, args.synonyms)
    embedder = find_embedder(args)
    words = split_words(args.words) if args.words else args.vocabulary
    made = make_vocabulary(words, lambda: embedder, options)
    save_vocabulary(made, args.output)
    print(f"Done: {len(made)} classes x {made.dim} in {args.output}")
    if args.as_json:
        shared.print_json({"output": args.output, "names": made.names, "shape": list(made.embeddings.shape)})
    return DONE


def find_embedder(args: Namespace) -> NameEmbedder:
    """Return the embedder with the text encoder of `--weights` and `--architecture`, else of the detector."""
    from regionclip.clip.architectures import get_architecture
    from regionclip.clip.embedding_cache import EmbeddingCache
    from regionclip.errors import user_error
    from regionclip.hub.default import default_model
    from regionclip.hub.fetching import require_consent, text_files_to_fetch, text_weights_of
    from regionclip.hub.pretrained import require_device
    from regionclip.hub.zoo import MODELS
    from regionclip.inference.text_encoder import load_embedder

    if args.model and (args.weights or args.architecture):
        raise user_error("--model, and --weights or --architecture", "one of them", "both", "leave one out")
    name, architecture = args.model or default_model().name, args.architecture
    if not (args.weights or architecture):
        if name not in MODELS:
            options = {"trust_pickle": args.trust_pickle, "agreed": args.yes}
            return shared.load_detector(name, "", [], "", args.device, **options).embedder
        architecture = MODELS[name].clip  # its text encoder needs no detector
    size, device = get_architecture(architecture or "RN50"), require_device(args.device)
    if not args.weights:
        require_consent(text_files_to_fetch(size.name), agreed=args.yes)
    weights = args.weights or text_weights_of(size.name)
    return load_embedder(size, weights, device, cache=EmbeddingCache(), trust_pickle=args.trust_pickle)
