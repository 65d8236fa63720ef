"""`regionclip ralf`: negative words for RAL; concepts and the augmenter for RAF."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from regionclip.cli import options as shared

app = typer.Typer(name="ralf", no_args_is_help=True, help="Negative words, concepts and the augmenter of RALF.")

Classes = Annotated[str, typer.Option(help="Class names, base and novel: coco, lvis, emoji, a file, or with commas.")]
Words = Annotated[
    str, typer.Option(help="Other words: a file, such as V3Det's names, or a class list; default: those included.")
]
Weights = Annotated[str, typer.Option(help="Checkpoint with the text encoder, instead of a detector.")]
Architecture = Annotated[str, typer.Option(help="CLIP size of it: RN50 unless given, ViT-B/32, or a JSON file.")]


def _run(arguments: Namespace, action: Callable[[Namespace], str]) -> None:
    """Run an action, and print the line that it returns after "Done: "."""
    from regionclip.engine.command import DONE, log_to_console, run_command

    def run() -> int:
        print(f"Done: {action(arguments)}")
        return DONE

    log_to_console()
    run_command(run)


@app.command("sample-words", no_args_is_help=True)
def sample_words(
    classes: Classes,
    output: Annotated[Path, typer.Option(help="JSON file to write, as published: numbers and names.")],
    words: Words = "default",
    variance: Annotated[str, typer.Option(help="argsort, as the published code; rank, as the paper.")] = "argsort",
    threshold: Annotated[
        float | None, typer.Option(help="Least variance of a kept word; published: COCO 13.2e6, LVIS 12.7e6.")
    ] = None,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Fraction that is dropped without a threshold.")] = 0.25,
    model: shared.Model = "",
    weights: Weights = "",
    architecture: Architecture = "",
    device: shared.Device = "",
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Keep the words whose similarity to classes varies most, for build-store.

    Example: regionclip ralf sample-words --classes lvis --words v3det_lvis.json --output sampled_lvis.json
    """
    from regionclip.methods.ralf.cli.run import sample_words as run

    _run(Namespace(**locals()), run)


@app.command("build-store", no_args_is_help=True)
def build_store(
    classes: Classes,
    output: Annotated[Path, typer.Option(help="File to write, for MODEL.RALF.RAL.STORE.")],
    words: Words = "default",
    per_class: Annotated[
        int, typer.Option(min=0, help="Words of each class; 0: 2000, and of short lists a sixth.")
    ] = 0,
    hub_classes: Annotated[
        int, typer.Option(min=0, help="Words on the lists of that many classes are removed; 0: two thirds of them.")
    ] = 0,
    model: shared.Model = "",
    weights: Weights = "",
    architecture: Architecture = "",
    device: shared.Device = "",
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Retrieve the hard and easy negative words of each class, by the text encoder of the detector.

    Example: regionclip ralf build-store --classes coco65 --words sampled_coco.json --weights
    pretrained_ckpt/clip/RN50.pt --output stores/coco.safetensors
    """
    from regionclip.methods.ralf.cli.run import build_store as run

    _run(Namespace(**locals()), run)


@app.command("import-store", no_args_is_help=True)
def import_store(
    published: Annotated[Path, typer.Argument(help="published file, such as neg_feature_lvis.pkl")],
    output: Annotated[Path, typer.Argument(help="file to write, for MODEL.RALF.RAL.STORE")],
    classes: Annotated[
        str, typer.Option(help="Class names in the order of the file; by their number, coco or lvis.")
    ] = "",
    architecture: Annotated[str, typer.Option(help="CLIP size that made it.")] = "ViT-B/32",
) -> None:
    """Convert a published file of negatives to a store a hundred times smaller.

    Example: regionclip ralf import-store ralf/neg_feature_lvis.pkl stores/lvis.safetensors
    """
    from regionclip.methods.ralf.cli.run import import_store as run

    _run(Namespace(**locals()), run)


@app.command("export-store", no_args_is_help=True)
def export_store(
    store: Annotated[Path, typer.Argument(help="file of build-store")],
    output: Annotated[Path, typer.Argument(help="file to write, .pkl with the five published arrays")],
) -> None:
    """Write a store as the published code reads it.

    Example: regionclip ralf export-store stores/lvis.safetensors neg_feature_lvis.pkl
    """
    from regionclip.methods.ralf.cli.run import export_store as run

    _run(Namespace(**locals()), run)


@app.command("prompts", no_args_is_help=True)
def prompts(
    words: Words,
    output: Annotated[Path, typer.Option(help="Text file to write, with a question on each line.")],
) -> None:
    """Write a question about each word, for the language model of your choice.

    Its answers go to build-concepts --descriptions. Example: regionclip ralf prompts --words v3det.json --output q.txt
    """
    from regionclip.methods.ralf.cli.run import write_prompts as run

    _run(Namespace(**locals()), run)


@app.command("build-concepts", no_args_is_help=True)
def build_concepts(
    output: Annotated[Path, typer.Option(help="File to write, for MODEL.RALF.RAF.CONCEPTS.")],
    descriptions: Annotated[
        str, typer.Option(help="Texts about words: one on each line, or a JSON object of words.")
    ] = "",
    words: Annotated[str, typer.Option(help="Without descriptions: the words themselves are the concepts.")] = "",
    parser: Annotated[str, typer.Option(help="embedded, or spacy if it is installed.")] = "embedded",
    templates: Annotated[str, typer.Option(help="Prompts around concepts: raf, name, or a text file.")] = "raf",
    model: shared.Model = "",
    weights: Weights = "",
    architecture: Architecture = "",
    device: shared.Device = "",
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Embed the noun chunks of descriptions as concepts.

    Example: regionclip ralf build-concepts --descriptions answers.txt --weights pretrained_ckpt/clip/ViT-B-32.pt
    --architecture ViT-B/32 --output concepts.safetensors
    """
    from regionclip.methods.ralf.cli.run import build_concepts as run

    _run(Namespace(**locals()), run)


@app.command("import-concepts", no_args_is_help=True)
def import_concepts(
    published: Annotated[Path, typer.Argument(help="published file, v3det_gpt_noun_chunk_lvis_strict.pkl")],
    output: Annotated[Path, typer.Argument(help="file to write, for MODEL.RALF.RAF.CONCEPTS")],
) -> None:
    """Convert a published file of noun chunks.

    Example: regionclip ralf import-concepts ralf/v3det_gpt_noun_chunk_lvis_strict.pkl concepts/lvis.pth
    """
    from regionclip.methods.ralf.cli.run import import_concepts as run

    _run(Namespace(**locals()), run)


@app.command("train-augmenter", no_args_is_help=True)
def train_augmenter(
    regions: Annotated[Path, typer.Option(help="Folder of regionclip features --objectness --format safetensors.")],
    concepts: Annotated[Path, typer.Option(help="File of build-concepts.")],
    classes: Annotated[Path, typer.Option(help="Embeddings of the pseudo labels: base classes, then other words.")],
    output: Annotated[Path, typer.Option(help="Folder for augmenter.pth, for MODEL.RALF.RAF.WEIGHTS.")],
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    images_per_batch: Annotated[int, typer.Option("--batch-size", min=1, help="Images of a step.")] = 128,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of SGD.")] = 0.1,
    per_region: Annotated[int, typer.Option("--topk-concept", min=1, help="Concepts of a region.")] = 50,
    per_image: Annotated[int, typer.Option("--num-proposals", min=1, help="Regions of an image.")] = 30,
    min_objectness: Annotated[float, typer.Option(help="Regions have a higher one.")] = 0.4,
    min_side: Annotated[float, typer.Option(help="In pixels; regions are larger.")] = 10.0,
    weight_class: Annotated[float, typer.Option("--stren-cls", help="Weight of the cross entropy.")] = 5.0,
    weight_region: Annotated[float, typer.Option("--stren-reg", help="Weight of the distance.")] = 1.0,
    held_out: Annotated[float, typer.Option(min=0, max=0.5, help="Fraction of images kept for the metrics.")] = 0.02,
    seed: Annotated[int, typer.Option()] = 0,
    device: shared.Device = "",
) -> None:
    """Train the concept augmenter on stored region embeddings; an interrupted command goes on when given again.

    Example: regionclip ralf train-augmenter --regions output/regions --concepts concepts.safetensors --classes
    labels.safetensors --output output/augmenter
    """
    from regionclip.methods.ralf.cli.run import train_augmenter as run

    _run(Namespace(**locals()), run)


@app.command("export", no_args_is_help=True)
def export(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint of a DetPro training")],
    output: Annotated[Path, typer.Argument(help="file to write, .pth with the published keys")],
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Write the weights of a checkpoint under the published keys, for the published code.

    Example: regionclip ralf export output/model_final.pth epoch_20.pth
    """
    from regionclip.methods.ralf.cli.run import export_checkpoint as run

    _run(Namespace(**locals()), run)
