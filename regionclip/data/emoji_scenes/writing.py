"""Writing scenes as datasets: images, COCO's and LVIS's JSON, captions, and tar shards."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from regionclip.data.emoji_scenes.captions import captions_of
from regionclip.data.emoji_scenes.concepts import BASE, Concept, read_concepts
from regionclip.data.emoji_scenes.drawings import drawings_fingerprint
from regionclip.data.emoji_scenes.processes import made_in_processes
from regionclip.data.emoji_scenes.scenes import Scene, SceneMaker
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import write_shards
from regionclip.files import atomic_write, write_json
from regionclip.fingerprints import fingerprint
from regionclip.journal import Journal
from regionclip.progress import progress_bar

QUALITY = 92
"""Of the JPEG files."""

RARE_BELOW, COMMON_BELOW = 11, 101
"""Images of a rare and of a common concept, as LVIS counts them."""


@dataclass(frozen=True)
class _Written:
    """What is kept of a scene."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    captions: list[str]


def write_split(folder: Path, name: str, maker: SceneMaker, count: int, *, shards: bool = False) -> list[Path]:
    """Write scenes 0 to `count - 1`: the same files, bit by bit, for the same maker; go on where a run stopped.

    Files: `<name>/<number>.jpg`; `annotations/<name>.json` (COCO, with masks),
    `annotations/<name>_base.json` (boxes of base concepts alone), `annotations/lvis_<name>.json`,
    `annotations/captions_<name>.json`; with `shards` also `shards/<name>/*.tar`.

    Args:
        folder: of the synthetic dataset.
        name: of the split.
        maker: makes the scenes.
        count: how many.
        shards: write captioned images as WebDataset shards too.

    Returns:
        The JSON files.
    """
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    annotations = folder / "annotations"
    journal = Journal(annotations, _fingerprint(name, maker), f"scenes_{name}")
    scenes = _write_scenes(images, maker, count, journal)
    concepts = read_concepts()
    is_base = {concept.number + 1 for concept in concepts if concept.split == BASE}
    contents = {
        f"{name}.json": _coco(scenes, concepts),
        f"{name}_base.json": _coco(scenes, concepts, is_base),
        f"lvis_{name}.json": _lvis(scenes, concepts, name),
        f"captions_{name}.json": _captions(scenes),
    }
    for file_name, content in contents.items():
        write_json(annotations / file_name, content)
    journal.remove()
    if shards:
        shutil.rmtree(folder / "shards" / name, ignore_errors=True)
        write_shards(_pairs(scenes, images), folder / "shards" / name)
    return [annotations / file_name for file_name in contents]


def _write_scenes(images: Path, maker: SceneMaker, count: int, journal: Journal) -> list[_Written]:
    """Write the scenes that the journal does not have, and return all in order."""
    scenes = {row["image_id"]: _Written(**row["written"]) for row in journal.finished()}
    scenes = {n: scene for n, scene in scenes.items() if n < count and (images / scene.image["file_name"]).is_file()}
    missing = [number for number in range(count) if number not in scenes]
    written = made_in_processes(_write_scene, missing, _start, (maker, images), chunk=16)
    bar = progress_bar(written, total=len(missing), unit="scene", description=images.name)
    for number, scene in zip(missing, bar, strict=True):
        journal.append([{"image_id": number, "written": asdict(scene)}])
        scenes[number] = scene
    return [scenes[number] for number in range(count)]


def _fingerprint(name: str, maker: SceneMaker) -> str:
    """Return a hash of what decides the scenes."""
    return fingerprint([name, maker.seed, maker.settings, drawings_fingerprint(maker.drawings), list(maker.concepts)])


def jpeg_bytes(scene: Scene) -> bytes:
    """Return the image of a scene as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(scene.pixels).save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


_work: dict[str, Any] = {}
"""What a process that writes scenes was started with."""


def _start(maker: SceneMaker, folder: Path) -> None:
    cv2.setNumThreads(1)
    _work.update(maker=maker, folder=folder)


def _write_scene(number: int) -> _Written:
    maker, folder = _work["maker"], _work["folder"]
    scene = maker.make(number)
    height, width = scene.pixels.shape[:2]
    name = f"{number:06}.jpg"
    with atomic_write(folder / name) as file:
        file.write(jpeg_bytes(scene))
    annotations = [
        {
            "image_id": number,
            "category_id": item.concept.number + 1,
            "bbox": [float(value) for value in item.box],
            "area": float(item.area),
            "segmentation": _run_lengths(item.box, item.mask, height, width),
            "iscrowd": 0,
        }
        for item in scene.objects
    ]
    image = {"id": number, "file_name": name, "height": height, "width": width}
    return _Written(image, annotations, captions_of(scene, maker.seed, number))


def _run_lengths(box: Sequence[int], mask: np.ndarray, height: int, width: int) -> dict[str, Any]:
    left, top, box_width, box_height = box
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top : top + box_height, left : left + box_width] = mask
    encoded = run_lengths.encode(whole)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _coco(scenes: Sequence[_Written], concepts: Sequence[Concept], wanted: set[int] | None = None) -> dict[str, Any]:
    kept = [a for scene in scenes for a in scene.annotations if wanted is None or a["category_id"] in wanted]
    categories = [
        {"id": concept.number + 1, "name": concept.name, "supercategory": concept.group, "split": concept.split}
        for concept in concepts
        if wanted is None or concept.number + 1 in wanted
    ]
    return {
        "images": [scene.image for scene in scenes],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(kept, start=1)],
        "categories": categories,
    }


def _lvis(scenes: Sequence[_Written], concepts: Sequence[Concept], name: str) -> dict[str, Any]:
    content = _coco(scenes, concepts)
    images: Counter[int] = Counter()
    instances: Counter[int] = Counter()
    for scene in scenes:
        found = [annotation["category_id"] for annotation in scene.annotations]
        instances.update(found)
        images.update(set(found))
        # Everything is annotated, so that each other concept is known to be absent.
        scene_image = content["images"][scene.image["id"]] = dict(scene.image)
        scene_image |= {"coco_url": f"emoji/{name}/{scene.image['file_name']}", "not_exhaustive_category_ids": []}
        scene_image["neg_category_ids"] = sorted({c.number + 1 for c in concepts} - set(found))
    for category in content["categories"]:
        count = images[category["id"]]
        frequency = "r" if count < RARE_BELOW else "c" if count < COMMON_BELOW else "f"
        category |= {"frequency": frequency, "image_count": count, "instance_count": instances[category["id"]]}
        category |= {"synonyms": [category["name"]], "synset": "", "def": ""}
    return content


def _captions(scenes: Sequence[_Written]) -> dict[str, Any]:
    rows = [(scene.image["id"], text) for scene in scenes for text in scene.captions]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(rows, start=1)]
    return {"images": [scene.image for scene in scenes], "annotations": annotations}


def _pairs(scenes: Sequence[_Written], folder: Path) -> Iterator[Pair]:
    for scene in scenes:
        name = scene.image["file_name"]
        yield Pair(Path(name).stem, (folder / name).read_bytes(), json.dumps({"captions": scene.captions}))
