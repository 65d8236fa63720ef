"""The published files of proposals, and of their embeddings, as a folder of region features."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regionclip.data.datasets.annotation_file import Entry, id_key, read_annotation_file, read_json
from regionclip.data.region_features.formats import Chunk, Features, SafetensorsShard, Shards
from regionclip.data.region_features.index import MANIFEST, write_index
from regionclip.engine.checkpoint.reading import read_pickle
from regionclip.errors import user_error
from regionclip.files import read_json_file, write_json
from regionclip.fingerprints import file_state, fingerprint
from regionclip.progress import progress_bar

COUNTS = "num_proposal"
"""Key of an id map that is no image id."""

_LIST = "a list with an array (n, 5) of boxes and objectness for each image"


def read_proposals(path: Path, *, trust_pickle: bool = False) -> list[NDArray[np.float32]]:
    """Return the arrays (n, 4) or (n, 5) of a published file: x1, y1, x2, y2 in pixels of the original, objectness.

    Raises:
        UserError: missing or unreadable file, one that could run code, or another content.
    """
    what, fix = f"proposals {path}", "name a published file such as train_coco_proposals.pkl"
    if not path.is_file():
        raise user_error(what, "a pickle of proposals", "no such file", "correct the path")
    try:
        content = read_pickle(path, trust_pickle=trust_pickle)
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError) as error:
        raise user_error(what, "a pickle of proposals", f"{type(error).__name__}: {error}", fix) from error
    if not isinstance(content, list) or not all(isinstance(part, np.ndarray) for part in content):
        raise user_error(what, _LIST, type(content).__name__, fix)
    for place, part in enumerate(content):
        if part.ndim != 2 or part.shape[1] not in (4, 5) or not np.isfinite(part).all():
            raise user_error(f"{what}, image {place}", "finite numbers (n, 5) or (n, 4)", f"{part.shape}", fix)
    return [np.asarray(part, dtype=np.float32) for part in content]


def _require_inside(boxes: NDArray[np.float32], image: Entry) -> None:
    """Raise a `UserError` for boxes beyond the image, which are those of another one."""
    width, height = image.get("width"), image.get("height")
    if not len(boxes) or not width or not height:
        return
    right, bottom = np.max(boxes[:, 2]), np.max(boxes[:, 3])
    if right > width + 1 or bottom > height + 1:
        actual, fix = f"boxes up to {right:.0f} x {bottom:.0f}", "name the --id-map or annotation file of the proposals"
        raise user_error(f"proposals of image {image['id']}", f"boxes within {width} x {height} pixels", actual, fix)


def places_of_images(images: Sequence[Entry], counts: Sequence[int], id_map: Path | None) -> list[int]:
    """Return for each image its place in a list of proposals.

    Args:
        images: of the annotation file, in its order.
        counts: number of proposals at each place.
        id_map: published JSON object, image id to place; None takes the order of the images.

    Raises:
        UserError: an image without a place, or a list of another length.
    """
    count = len(counts)
    if id_map is None:
        if len(images) != count:
            fix = "name the annotation file that the proposals were made for, or their --id-map"
            raise user_error("proposals", f"{len(images)} images, as the annotation file", f"{count}", fix)
        return list(range(count))
    content = read_json(id_map, what="a map of image ids", fix="name the file *_id_map.json of the proposals")
    known = {id_key(key): place for key, place in content.items() if key != COUNTS}
    places: list[int] = []
    for image in images:
        place = known.get(id_key(image["id"]))
        if not isinstance(place, int) or not 0 <= place < count:
            fix = "name the map that belongs to the proposals"
            raise user_error(f"{id_map}: image {image['id']}", f"a place below {count}", repr(place), fix)
        places.append(place)
    if len(set(places)) < len(places):
        raise user_error(f"{id_map}", "a place of its own for each image", "one for several", "name another map")
    if content.get(COUNTS) not in (None, [], list(counts)):
        fix = "name the map that belongs to the proposals"
        raise user_error(f"{id_map}: {COUNTS}", "the numbers of boxes in the proposals", "others", fix)
    return places


def map_embeddings(path: Path, rows: int, width: int) -> NDArray[np.float16]:
    """Return the flat file of published embeddings, float16 [rows, width], without reading it.

    Raises:
        UserError: a file of another size. The published code maps it as float32, which doubles it; that is said.
    """
    expected, actual = rows * width * 2, path.stat().st_size if path.is_file() else -1
    what = f"embeddings {path}"
    if actual < 0:
        raise user_error(what, "a file of float16 numbers", "no such file", "correct the path")
    if actual == 2 * expected:
        fix = "the published code maps it as float32 and so appends zeros; write the file again, or cut it in half"
        raise user_error(what, f"{expected} bytes, {rows} x {width} float16", f"{actual}, twice as many", fix)
    if actual != expected:
        fix = "name the embeddings of these proposals, and their --width"
        raise user_error(what, f"{expected} bytes, {rows} x {width} float16", f"{actual}", fix)
    return np.memmap(path, dtype=np.float16, mode="r", shape=(rows, width))


def convert(
    proposals: Path,
    annotations: Path,
    output: Path,
    *,
    id_map: Path | None = None,
    embeddings: Path | None = None,
    clip: str = "ViT-B/32",
    width: int = 512,
    images_per_shard: int = 1000,
    trust_pickle: bool = False,
) -> int:
    """Write published proposals, with their embeddings if given, as a folder of region features; return their number.

    Shards that are there already are kept.

    Args:
        proposals: published pickle.
        annotations: COCO file with the images.
        output: folder.
        id_map: image ids of the proposals; None takes the order of the annotation file.
        embeddings: flat float16 file, image by image in the order of the list.
        clip: CLIP size of the embeddings.
        width: D.
        images_per_shard: images of a file.
        trust_pickle: allow a pickle that runs code.

    Raises:
        UserError: files that do not belong together.
    """
    content = read_annotation_file(annotations, what="COCO's JSON format", fix="name its file", key="images")
    images: list[Entry] = content["images"]
    boxes = read_proposals(proposals, trust_pickle=trust_pickle)
    counts = [len(part) for part in boxes]
    places = places_of_images(images, counts, id_map)
    for image, place in zip(images, places, strict=True):
        _require_inside(boxes[place], image)
    table = None if embeddings is None else map_embeddings(embeddings, sum(counts), width)
    starts = [0, *itertools.accumulate(counts)]
    names = [image["file_name"] for image in images]
    shards = Shards(output, SafetensorsShard(), images_per_shard)
    chunks = shards.chunks(names, 1)
    place_of = dict(zip(names, places, strict=True))
    about = {"clip": clip, "dim": width} if embeddings is not None else {}
    _claim(output, (proposals, annotations, id_map, embeddings), about)
    for chunk in progress_bar(chunks, unit="shard"):
        if not shards.is_done(chunk, 0.0):
            shards.write(chunk, dict(_features(chunk, place_of, boxes, table, starts)), {})
    write_index(shards, chunks)
    return sum(counts[place] for place in places)


def _claim(output: Path, files: Sequence[Path | None], about: dict[str, Any]) -> None:
    """Write the manifest of a folder; raises `UserError` if it has regions of other files."""
    states = [(str(file), file_state(file)) for file in files if file is not None]
    manifest = {"fingerprint": fingerprint([states, about])[:16], **about}
    found = read_json_file(output / MANIFEST)
    if found not in (None, manifest):
        raise user_error(f"--output {output}", "no regions of other files", "some", "name another folder")
    write_json(output / MANIFEST, manifest)


def _features(
    chunk: Chunk,
    place_of: Mapping[str, int],
    boxes: Sequence[NDArray[np.float32]],
    table: NDArray[np.float16] | None,
    starts: Sequence[int],
) -> Iterator[tuple[str, Features]]:
    for name in chunk.names:
        place = place_of[name]
        rows: dict[str, Any] = {"boxes": torch.from_numpy(boxes[place][:, :4].copy())}
        if boxes[place].shape[1] == 5:
            rows["objectness"] = torch.from_numpy(boxes[place][:, 4].copy())
        if table is not None:
            rows["feats"] = torch.from_numpy(np.array(table[starts[place] : starts[place + 1]]))
        yield name, rows
