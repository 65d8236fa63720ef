"""`regionclip lp-ovod`: teach a detector new class names, and convert published files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip.hub.pretrained import Pretrained

OWN = "own"
"""Teacher that is the distilled head of the detector itself."""

app = typer.Typer(name="lp-ovod", no_args_is_help=True, help="Teach a detector new words from unlabeled images.")


@app.command("learn", no_args_is_help=True)
def learn(
    words: Annotated[str, typer.Option(help="Class names to learn, with commas.")],
    images: Annotated[Path, typer.Option(help="Folder of images that show them; no labels are needed.")],
    output: Annotated[Path, typer.Option(help="Folder for the detector.")],
    model: Annotated[str, typer.Option(help="Detector of LP-OVOD that is taught.")] = "lp_ovod_rn50",
    teacher: Annotated[
        str, typer.Option(help="CLIP on crops, which it was distilled from; own: its distilled head, faster.")
    ] = "crop_clip_vitb32",
    exclude: Annotated[str, typer.Option(help="Numbers of wrong regions on the page, with commas.")] = "",
    count: Annotated[int, typer.Option("--per-word", min=1, help="Regions that are retrieved for each word.")] = 100,
    objectness: Annotated[float, typer.Option("--min-objectness", help="Minimum of a region.")] = 0.6,
    yes: shared.Yes = False,
    device: shared.Device = "",
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Teach a detector words that it does not know, from images without labels.

    CLIP embeds the proposals of all images, each word retrieves the most similar ones, and a linear classifier learns
    from them. The page retrieved.html in the output folder shows what each word has retrieved. An interrupted command
    goes on when it is given again. Example:

    regionclip lp-ovod learn --words "traffic cone, pallet" --images yard/ --output detector/

    regionclip detect photo.jpg --model detector/ --words "traffic cone, person"
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run_learn(arguments))


def run_learn(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.engine.ownership import own_folder
    from regionclip.errors import user_error
    from regionclip.hub.pretrained import load_pretrained
    from regionclip.methods.lp_ovod.cli.learn import PAGE, Lesson
    from regionclip.methods.lp_ovod.cli.learn import learn as teach

    for name in {args.model, args.teacher} - {OWN}:
        shared.fetch_files(name, agreed=args.yes)
    for option, name in (("--model", args.model), ("--teacher", args.teacher)):
        if Path(name).is_dir() and args.output.is_dir() and args.output.samefile(name):
            raise user_error(f"--output {args.output}", f"another folder than {option}", "the same", "name another")
    lesson = Lesson(args.words, args.images, args.output, args.count, args.objectness, _numbers(args.exclude))
    with own_folder(args.output, f"--output {args.output}"):
        base = load_pretrained(args.model, device=args.device, trust_pickle=args.trust_pickle)
        learned = teach(base, base if args.teacher == OWN else _load_teacher(args), lesson)
    counts = f"{learned.boxes} regions in {learned.images} images"
    print(f"Done: {', '.join(learned.names)} learned from {counts}; look at {args.output / PAGE}")
    print(f'regionclip detect photo.jpg --model {args.output} --words "{", ".join(learned.names)}"')
    if args.as_json:
        numbers = {"regions": learned.boxes, "images": learned.images}
        shared.print_json({"output": args.output, "words": learned.names, **numbers, "page": args.output / PAGE})
    return DONE


def _load_teacher(args: Namespace) -> Pretrained:
    """Return the teacher, optimized for inference."""
    from regionclip.hub.pretrained import load_pretrained
    from regionclip.modeling.inference.prepare import prepare_as_configured

    teacher = load_pretrained(args.teacher, device=args.device, trust_pickle=args.trust_pickle)
    prepare_as_configured(teacher.model, teacher.cfg)
    return teacher


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas; raises `UserError` for anything else."""
    from regionclip.errors import user_error

    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdigit():
            raise user_error("--exclude", "numbers with commas", repr(part), "write the numbers that the page shows")
    return tuple(map(int, parts))


@app.command("retrieve", no_args_is_help=True)
def retrieve(
    regions: Annotated[Path, typer.Option(help="Folder of regionclip features --objectness, of unlabeled images.")],
    embeddings: Annotated[Path, typer.Option(help="Embeddings of the novel classes, from regionclip concepts.")],
    annotations: Annotated[Path, typer.Option(help="COCO file with the ids of images and categories.")],
    output: Annotated[Path, typer.Option(help="File to write, in COCO's format.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for a page with the regions.")] = None,
    count: Annotated[int, typer.Option("--per-word", min=1, help="Regions of each class.")] = 100,
    objectness: Annotated[float, typer.Option("--min-objectness", help="Minimum of a region.")] = 0.6,
    cosine: Annotated[float, typer.Option("--min-cosine", help="Minimum of a region.")] = -1.0,
    device: shared.Device = "",
) -> None:
    """Retrieve the regions most similar to each class, as a dataset for linear probing.

    Example: regionclip lp-ovod retrieve --regions output/regions --embeddings coco17.safetensors --annotations
    datasets/coco/annotations/ovd_ins_train2017_all.json --output retrieved_proposals.json
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import run_command

    run_command(lambda: run_retrieve(arguments))


def run_retrieve(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.hub.pretrained import require_device
    from regionclip.methods.lp_ovod.cli.retrieve import retrieve_file

    limits = args.count, args.objectness, args.cosine, require_device(args.device)
    found = retrieve_file(args.regions, args.embeddings, args.annotations, args.output, args.images, *limits)
    print(f"Done: {len(found['annotations'])} regions in {len(found['images'])} images in {args.output}")
    return DONE


@app.command("convert", no_args_is_help=True)
def convert(
    proposals: Annotated[Path, typer.Argument(help="published proposals, such as train_coco_proposals.pkl")],
    annotations: Annotated[Path, typer.Option(help="COCO file with the images.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    id_map: Annotated[Path | None, typer.Option(help="Published map of image ids; by default their order.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Published flat file of float16 embeddings.")] = None,
    width: Annotated[int, typer.Option(help="Width of the embeddings.")] = 512,
    trust_pickle: shared.TrustPickle = False,
) -> None:
    """Convert published proposals, and their embeddings, to a folder of region features.

    Detectors take it as MODEL.CLIP.PROPOSAL_FILE, base training as MODEL.LP_OVOD.REGIONS. Example:

    regionclip lp-ovod convert val_coco_proposals.pkl --id-map val_coco_id_map.json --annotations
    datasets/coco/annotations/ovd_ins_val2017_all.json --output proposals/val
    """
    from regionclip.engine.command import DONE, run_command

    def run() -> int:
        from regionclip.engine.ownership import own_folder
        from regionclip.methods.lp_ovod.published_regions import convert as convert_files

        with own_folder(output, f"--output {output}"):
            number = convert_files(
                proposals,
                annotations,
                output,
                id_map=id_map,
                embeddings=embeddings,
                width=width,
                trust_pickle=trust_pickle,
            )
        print(f"Done: {number} regions in {output}")
        return DONE

    run_command(run)


@app.command("export", no_args_is_help=True)
def export(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint of an LP-OVOD training")],
    output: Annotated[Path, typer.Argument(help="file to write, .pth with the published keys")],
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read files that can run code.")] = False,
) -> None:
    """Write the weights of a checkpoint under the published keys, for the published code.

    Example: regionclip lp-ovod export output/model_final.pth vild_sigmoid_ft.pth
    """
    from regionclip.engine.command import DONE, run_command

    def run() -> int:
        from regionclip.engine.checkpoint.publishing import write_published
        from regionclip.methods.lp_ovod.checkpoints import published_state

        about = published_state, "roi_head.prototype", "LP-OVOD"
        number = write_published(checkpoint, output, *about, trust_pickle=trust_pickle)
        print(f"Done: {number} entries in {output}")
        return DONE

    run_command(run)
