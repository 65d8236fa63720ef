"""Detection on a cluster with Ray Data (`pip install "regionclip[ray]"`): one row for each image.

For example:

    import ray
    from regionclip.integrations.ray import detect_to_parquet

    images = ray.data.read_parquet("paths.parquet")  # with a column `path`
    detect_to_parquet(images, ["cat", "traffic cone"], "detections", model="clip_rn50", concurrency=4, num_gpus=1)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from regionclip.clip.class_name_files import Word
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.errors import user_error
from regionclip.predictor import RegionCLIP

PATH, BYTES, ERROR = "path", "bytes", "error"
"""Columns: the file of an image, or its content, and why there are no detections."""


class ImageDetector:
    """Adds the detections to the row of an image; an actor of Ray Data holds one."""

    def __init__(
        self,
        words: Sequence[Word],
        model: str = "clip_rn50",
        *,
        threshold: float | None = None,
        topk: int | None = None,
        embeddings: bool = False,
        device: str = "",
        threads: int = 0,
    ) -> None:
        """Load the detector.

        Args:
            words: class names, or lists of synonyms.
            model: name or folder of a detector.
            threshold: minimum score; None takes that of the detector.
            topk: most detections of an image.
            embeddings: add the region embeddings.
            device: such as `cuda`; by default the GPU of the actor, if it has one.
            threads: of torch in each actor; 0 keeps its number.
        """
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.detector = RegionCLIP.from_pretrained(model, device=device)
        self.detector.set_vocabulary(list(words))
        self.threshold = self.detector.usual_threshold if threshold is None else threshold
        self.topk, self.embeddings = topk, embeddings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with `width`, `height`, `boxes`, `names`, `scores`, `embeddings` and `error`.

        An image without detections has empty lists, one that cannot be read has them too, and an `error`.

        Args:
            row: with `path`, or with the content of the file in `bytes`.

        Raises:
            UserError: neither of them.
        """
        kept = {name: value for name, value in row.items() if name != BYTES}
        empty: dict[str, Any] = {"width": 0, "height": 0, "boxes": [], "names": [], "scores": [], "embeddings": []}
        try:
            self.detector.set_image(self._pixels(row))
            found = self.detector.predict(threshold=self.threshold, topk=self.topk, embeddings=self.embeddings)
        except (UnreadableImageError, OSError) as error:
            return {**kept, **empty, ERROR: str(error)}
        rows = found.embeddings.tolist() if self.embeddings and found.embeddings is not None else []
        height, width = found.image_size
        columns = {"boxes": found.boxes.tolist(), "names": found.names, "scores": found.scores.tolist()}
        return {**kept, "width": width, "height": height, **columns, "embeddings": rows, ERROR: ""}

    @staticmethod
    def _pixels(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if row.get(BYTES) is not None:
            return read_image(io.BytesIO(row[BYTES]))
        if not row.get(PATH):
            fix = f"name the column of the files {PATH}, or that of their contents {BYTES}"
            raise user_error("a row of the dataset", f"a column {PATH} or {BYTES}", ", ".join(row) or "none", fix)
        return read_image(str(row[PATH]))


class TableDetector(ImageDetector):
    """Adds the detections to a table of images: typed columns, whatever rows have none."""

    def __call__(self, table: Any) -> Any:
        """Return a pyarrow table with the columns of `ImageDetector`, without the contents of files."""
        import pyarrow

        boxes = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
        types = {
            **{"width": pyarrow.int64(), "height": pyarrow.int64(), "boxes": boxes},
            **{"names": pyarrow.list_(pyarrow.string()), "scores": pyarrow.list_(pyarrow.float32())},
            **{"embeddings": boxes, ERROR: pyarrow.string()},
        }
        answer = super().__call__
        rows = [answer(row) for row in table.to_pylist()]
        kept = table.drop_columns([name for name in (BYTES, *types) if name in table.column_names])
        for name, kind in types.items():
            kept = kept.append_column(name, pyarrow.array([row[name] for row in rows], kind))
        return kept


def detect(
    dataset: Any,
    words: Sequence[Word],
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
        words: class names, or lists of synonyms.
        model: name or folder of a detector.
        concurrency: number of actors, or the fewest and the most.
        num_cpus: logical CPUs that an actor reserves. Reading and writing need one more: with actors on all CPUs, a job
            waits forever. Two actors on two cores take 0.5 each.
        num_gpus: GPUs of an actor.
        options: further ones of `ImageDetector`.

    Raises:
        UserError: Ray is not installed.
    """
    _require_ray()
    arguments = {"model": model, "threads": max(int(num_cpus), 1), **options}
    return dataset.map_batches(
        TableDetector,
        batch_format="pyarrow",
        fn_constructor_args=(list(words),),
        fn_constructor_kwargs=arguments,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def detect_to_parquet(
    dataset: Any,
    words: Sequence[Word],
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
        words: class names, or lists of synonyms.
        output: folder, or address of an object store.
        model: name or folder of a detector.
        rows_per_block: images that are read, computed and noted together; about a minute's work.
        options: further ones of `detect`.

    Raises:
        UserError: Ray is not installed.
    """
    _require_ray()
    from ray.data.checkpoint import CheckpointConfig

    place = output.rstrip("/") if "://" in output else str(Path(output).absolute())
    blocks = dataset.repartition(target_num_rows_per_block=rows_per_block)
    found = detect(blocks, words, model, **options)
    # A dataset has a context of its own, which it took over where it was made.
    found.context.checkpoint_config = CheckpointConfig(PATH, f"{place}_checkpoint")
    found.write_parquet(place)
    drop_repeated(place)


def drop_repeated(place: str) -> None:
    """Remove rows that a killed job wrote, but had no time to note: the next one has written them again.

    Args:
        place: folder of Parquet files, or address of one; all paths are read.
    """
    from pyarrow import compute, fs, parquet

    files, folder = fs.FileSystem.from_uri(place) if "://" in place else (fs.LocalFileSystem(), place)
    seen: set[str] = set()
    for entry in sorted(files.get_file_info(fs.FileSelector(folder)), key=lambda entry: entry.path):
        if not entry.path.endswith(".parquet"):
            continue
        paths = parquet.read_table(entry.path, columns=[PATH], filesystem=files)[PATH].to_pylist()
        if any(path in seen for path in paths):
            table = parquet.read_table(entry.path, filesystem=files)
            kept = table.filter(compute.invert(compute.is_in(table[PATH], _strings(seen))))
            if len(kept):
                parquet.write_table(kept, f"{entry.path}.tmp", filesystem=files)
                files.move(f"{entry.path}.tmp", entry.path)
            else:
                files.delete_file(entry.path)
        seen.update(paths)


def _strings(values: set[str]) -> Any:
    import pyarrow

    return pyarrow.array(sorted(values), pyarrow.string())


def _require_ray() -> None:
    if find_spec("ray") is None:
        raise user_error("Ray Data", "the library ray", "not installed", 'pip install "regionclip[ray]"')
