"""Detection on a cluster with Ray Data (`pip install "regionclip[ray]"`): one row for each image.

For example:

    import ray
    from regionclip.integrations.ray import detect_to_parquet

    images = ray.data.read_parquet("paths.parquet")  # with a column `path`
    detect_to_parquet(images, ["cat", "traffic cone"], "detections", model="clip_rn50", concurrency=4, num_gpus=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from regionclip.clip.class_name_files import Word
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.image_contents import NamedBytes, from_text
from regionclip.data.images import WHITE, decode_image
from regionclip.errors import UserError, user_error
from regionclip.files import existing_file
from regionclip.inference.slices import Slices
from regionclip.integrations.parquet_parts import checkpoint_of, drop_repeated, recover
from regionclip.predictor import OWN_WORDS, RegionCLIP

PATH, BYTES, CONTENT, ERROR = "path", "bytes", "regionclip_content", "error"
"""Columns: the file of an image, its bytes, or `data.image_contents.to_text`; and why there are no detections."""


class ImageDetector:
    """Adds the detections to the row of an image; an actor of Ray Data holds one."""

    def __init__(
        self,
        words: str | Path | Sequence[Word] | Vocabulary,
        model: str = "clip_rn50",
        *,
        threshold: float | None = None,
        topk: int | None = None,
        embeddings: bool = False,
        device: str = "",
        threads: int = 0,
        background: Sequence[Word] | Vocabulary | str | None = OWN_WORDS,
        per_class: bool = False,
        slices: Slices | None = None,
        matte: str = WHITE,
        loading: dict[str, Any] | None = None,
    ) -> None:
        """Load the detector.

        Args:
            words: class names, or lists of synonyms; or a vocabulary.
            model: name or folder of a detector.
            threshold: minimum score; None takes that of the detector.
            topk: most detections of an image.
            embeddings: add the region embeddings.
            device: such as `cuda`; by default the GPU of the actor, if it has one.
            threads: of torch in each actor; 0 keeps its number.
            background: class names that share the scores, as of `RegionCLIP.set_vocabulary`.
            per_class: let a box come with several class names.
            slices: also detect in tiles.
            matte: color behind transparent pixels.
            loading: further options of `RegionCLIP.from_pretrained`.
        """
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.detector = RegionCLIP.from_pretrained(model, device=device, **(loading or {}))
        self.detector.set_vocabulary(_as_words(words), background=background)
        self.threshold = self.detector.usual_threshold if threshold is None else threshold
        self.matte = matte
        self.options: dict[str, Any] = {
            "topk": topk,
            "embeddings": embeddings,
            "per_class": per_class,
            "slices": slices,
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with `width`, `height`, `boxes`, `names`, `scores`, `embeddings`, `notes` and `error`.

        An image without detections has empty lists, one that cannot be read has them too, and an `error`.

        Args:
            row: with `path`, and the content of the file in `bytes` if it is not at that path.

        Raises:
            UserError: neither of them.
        """
        if row.get(BYTES) is None and not row.get(PATH):
            fix = f"name the column of the files {PATH}, or that of their contents {BYTES}"
            raise user_error("a row of the dataset", f"a column {PATH} or {BYTES}", ", ".join(row) or "none", fix)
        kept = {name: value for name, value in row.items() if name not in (BYTES, CONTENT)}
        empty: dict[str, Any] = {"width": 0, "height": 0, "boxes": [], "names": [], "scores": [], "embeddings": []}
        try:
            image = decode_image(_image_of(row), self.matte)
        except (OSError, UserError) as error:
            return {**kept, **empty, "notes": [], ERROR: str(error)}
        self.detector.set_image(image.pixels)
        found = self.detector.predict(threshold=self.threshold, **self.options)
        rows = found.embeddings.tolist() if found.embeddings is not None else []
        height, width = found.image_size
        columns = {"boxes": found.boxes.tolist(), "names": found.names, "scores": found.scores.tolist()}
        columns |= {"embeddings": rows, "notes": [*image.notes, *found.warnings]}
        return {**kept, "width": width, "height": height, **columns, ERROR: ""}


def _image_of(row: dict[str, Any]) -> str | BinaryIO:
    if row.get(CONTENT) is not None:
        return from_text(row[CONTENT]).open()
    if row.get(BYTES) is not None:
        return NamedBytes(str(row.get(PATH) or BYTES), row[BYTES])
    return str(row[PATH])


def _as_words(words: str | Path | Sequence[Word] | Vocabulary) -> str | Path | list[Word] | Vocabulary:
    """Return words for an actor, which has a working directory of its own."""
    if isinstance(words, str | Path):
        file = existing_file(str(words))
        return words if file is None else file.absolute()
    return words if isinstance(words, Vocabulary) else list(words)


class TableDetector(ImageDetector):
    """Adds the detections to a table of images: typed columns, whatever rows have none."""

    def __call__(self, table: Any) -> Any:
        """Return a pyarrow table with the columns of `ImageDetector`, without the contents of files."""
        import pyarrow

        boxes = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
        types = {
            **{"width": pyarrow.int64(), "height": pyarrow.int64(), "boxes": boxes},
            **{"names": pyarrow.list_(pyarrow.string()), "scores": pyarrow.list_(pyarrow.float32())},
            **{"embeddings": boxes, "notes": pyarrow.list_(pyarrow.string()), ERROR: pyarrow.string()},
        }
        answer = super().__call__
        rows = [answer(row) for row in table.to_pylist()]
        kept = table.drop_columns([name for name in (BYTES, CONTENT, *types) if name in table.column_names])
        for name, kind in types.items():
            kept = kept.append_column(name, pyarrow.array([row[name] for row in rows], kind))
        return kept


def detect(
    dataset: Any,
    words: str | Path | Sequence[Word] | Vocabulary,
    model: str = "clip_rn50",
    *,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Any,
) -> Any:
    """Return a Ray dataset with the detections of each image, in as many rows as `dataset` has.

    Args:
        dataset: with a column `path` or `bytes`.
        words: class names, or lists of synonyms; a class list or file by name; or a vocabulary.
        model: name or folder of a detector.
        concurrency: number of actors, or the fewest and the most.
        num_cpus: logical CPUs that an actor reserves. Reading and writing need one more: with actors on all CPUs, a job
            waits forever. Two actors on two cores take 0.5 each.
        num_gpus: GPUs of an actor.
        options: further ones of `ImageDetector`.

    Raises:
        UserError: Ray is not installed.
    """
    require_ray()
    arguments = {"model": model, "threads": max(int(num_cpus), 1), **options}
    return dataset.map_batches(
        TableDetector,
        batch_format="pyarrow",
        fn_constructor_args=(_as_words(words),),
        fn_constructor_kwargs=arguments,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def detect_to_parquet(
    dataset: Any,
    words: str | Path | Sequence[Word] | Vocabulary,
    output: str,
    model: str = "clip_rn50",
    *,
    rows_per_block: int = 64,
    **options: Any,
) -> None:
    """Detect in all images of a dataset and write Parquet files; given again after a kill, it goes on.

    Finished images are noted in `output`_checkpoint, by their `path`, until all are done.

    Args:
        dataset: with a column `path`, in which no path comes twice.
        words: class names, or lists of synonyms; or a vocabulary.
        output: folder, or address of an object store.
        model: name or folder of a detector.
        rows_per_block: images that are read, computed and noted together; about a minute's work.
        options: further ones of `detect`.

    Raises:
        UserError: Ray is not installed.
    """
    require_ray()
    from ray.data.checkpoint import CheckpointConfig

    place = output.rstrip("/") if "://" in output else str(Path(output).absolute())
    dataset = _without(dataset, recover(place))
    # Without `strict`, small blocks stay as they are: a row each in a dataset from a list.
    blocks = dataset.repartition(target_num_rows_per_block=rows_per_block, strict=True)
    found = detect(blocks, words, model, **options)
    # A dataset has a context of its own, which it took over where it was made.
    found.context.checkpoint_config = CheckpointConfig(PATH, checkpoint_of(place))
    found.write_parquet(place)
    drop_repeated(place)


def _without(dataset: Any, paths: list[str]) -> Any:
    """Return a dataset without finished images: Ray leaves them out only if it reads the dataset from files."""
    if not paths:
        return dataset
    import pyarrow
    import ray

    finished = ray.put(pyarrow.array(paths))

    def unfinished(table: Any) -> Any:
        from pyarrow import compute

        return table.filter(compute.invert(compute.is_in(table[PATH], ray.get(finished))))

    return dataset.map_batches(unfinished, batch_format="pyarrow")


def require_ray() -> None:
    """Raise a `UserError` if Ray is not installed."""
    if find_spec("ray") is None:
        raise user_error("Ray Data", "the library ray", "not installed", 'pip install "regionclip[ray]"')
