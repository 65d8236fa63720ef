"""Opening image-text sources by path and format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regionclip.data.image_text.pairs import PairSource
from regionclip.data.image_text.shards import ShardPairs
from regionclip.data.image_text.tables import read_coco_captions, read_table
from regionclip.data.image_text.tsv import TSVPairs
from regionclip.errors import user_error
from regionclip.files import resolve_path


def open_pairs(path: str, factory: str) -> list[PairSource]:
    """Return the sources of an entry of PATH_TRAIN; `a+b` names several.

    Args:
        path: file, or folder of files.
        factory: entry of FACTORY_TRAIN, a name in `FACTORIES`.

    Raises:
        UserError: unknown factory, nothing found, or a malformed file.
    """
    if factory not in FACTORIES:
        raise user_error("DATASETS.FACTORY_TRAIN", " or ".join(FACTORIES), repr(factory), "choose one of them")
    sources = []
    for name in path.split("+"):
        place = resolve_path(name)
        if not place.exists():
            fix = "correct the path (docs/pretraining.md)"
            raise user_error("DATASETS.PATH_TRAIN", "a file or folder of image-text pairs", name, fix)
        sources += FACTORIES[factory](place)
    if not sum(map(len, sources)):
        fix = "correct the path, or choose the FACTORY_TRAIN of its format (docs/pretraining.md)"
        raise user_error(f"DATASETS.PATH_TRAIN {path}", "image-text pairs", "none", fix)
    return sources


def _files(place: Path, fits: Callable[[Path], bool]) -> list[Path]:
    return [place] if place.is_file() else sorted(path for path in place.iterdir() if fits(path))


def _is_image_tsv(path: Path) -> bool:
    return path.suffix == ".tsv" and ("image" in path.name or "img" in path.name)


FACTORIES: dict[str, Callable[[Path], list[PairSource]]] = {
    "CLIPImgTxtPairTSVDataset": lambda place: [TSVPairs(_files(place, _is_image_tsv))],
    "ImageTextShards": lambda place: [ShardPairs(_files(place, lambda path: path.suffix == ".tar"))],
    "COCOCaptions": lambda place: [read_coco_captions(path) for path in _files(place, _is_captions)],
    "CaptionTable": lambda place: [read_table(path) for path in _files(place, _is_table)],
}
"""Readers by the name in DATASETS.FACTORY_TRAIN; the first is upstream's."""


def _is_captions(path: Path) -> bool:
    return path.name.startswith("captions_") and path.suffix == ".json"


def _is_table(path: Path) -> bool:
    return path.suffix in (".csv", ".tsv", ".parquet")
