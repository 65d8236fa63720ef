"""Captioned images of the synthetic dataset, for training CLIP: one object and a sentence about it, or a scene."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
from numpy.random import PCG64, Generator, SeedSequence

from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.data.emoji_scenes.captions import captions_of
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.data.emoji_scenes.drawings import Drawings, drawings_fingerprint
from regionclip.data.emoji_scenes.processes import made_in_processes
from regionclip.data.emoji_scenes.scenes import Scene, SceneMaker, SceneSettings
from regionclip.data.emoji_scenes.variations import Variations
from regionclip.data.emoji_scenes.writing import jpeg_bytes
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import PAIRS_IN_FILE, write_shards
from regionclip.files import read_json_file, write_json
from regionclip.progress import progress_bar

PAIRS = 240_000
"""Written unless told otherwise: about 200 images of each concept, in two to four styles."""

SCENES_IN = 20
"""One image of so many is a whole scene, the others show one object each."""

NEAR = SceneSettings(
    sides=(64, 80, 96), objects=(1, 1), object_side=(40, 92), tail=1, strokes=4, variations=Variations()
)
FAR = replace(NEAR, sides=(24, 32, 40), object_side=(18, 38), strokes=2)
FAR_IN = 4
"""One image of so many shows its object small, as crops of scenes do."""

SEED = 11

BARE = ("{}.", "an image of a {}.")
"""Half of the captions of an object hardly say more than its name; the others are sentences."""


class PairMaker:
    """Makes the pair of a number.

    No boxes and no crops of scenes, as in the images of the web that CLIP learned from. All concepts
    come, novel ones too: they are named, and never located.
    """

    def __init__(self, drawings: list[Drawings]) -> None:
        """Make a maker of images in these styles."""
        self._near = SceneMaker(drawings, read_concepts(), SEED, NEAR)
        self._far = SceneMaker(drawings, read_concepts(), SEED, FAR)
        self._scenes = SceneMaker(drawings, read_concepts(), SEED, SceneSettings(variations=Variations()))

    def make(self, number: int) -> Pair:
        """Return the pair of a number, the same whenever and wherever it is asked for."""
        if number % SCENES_IN == 0:
            scene = self._scenes.make(number)
            captions = captions_of(scene, SEED, number)
        else:
            scene = (self._near if number % FAR_IN else self._far).make(number)
            random = Generator(PCG64(SeedSequence([SEED, number, 2])))
            templates = [*BARE, *random.choice(PROMPT_TEMPLATES, 2, replace=False).tolist()]
            names = [item.concept.name for item in scene.objects]
            captions = [fill_template(template, name) for name in names for template in templates] or ["nothing"]
        return Pair(f"emoji {number}", jpeg_bytes(scene), json.dumps({"captions": captions, "concepts": _named(scene)}))


def write_pairs(root: Path, drawings: list[Drawings], count: int = PAIRS) -> list[Path]:
    """Write pairs 0 to `count - 1` as WebDataset shards `pairs/*.tar`; return the files.

    Shards that an interrupted run wrote from the same drawings are kept, others are replaced;
    `pairs.json` tells them apart.
    """
    folder, origin = root / "pairs", root / "pairs.json"
    made_from = {"pairs": count, "drawings": drawings_fingerprint(drawings), "settings": repr((NEAR, FAR))}
    names = (folder / f"{number:05d}.tar" for number in itertools.count())
    kept = list(itertools.takewhile(Path.is_file, names)) if read_json_file(origin) == made_from else []
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(origin, made_from)
    for after_a_gap in set(folder.glob("*.tar")) - set(kept):
        after_a_gap.unlink()
    missing = range(min(len(kept) * PAIRS_IN_FILE, count), count)
    pairs = made_in_processes(_make, missing, _start, (drawings,), chunk=64)
    return write_shards(progress_bar(pairs, total=len(missing), unit="pair"), folder, kept=kept)


def _named(scene: Scene) -> list[str]:
    """Return the names of what is there, in alphabetical order."""
    return sorted({item.concept.name for item in scene.objects})


_work: dict[str, Any] = {}
"""What a process that makes pairs was started with."""


def _start(drawings: list[Drawings]) -> None:
    cv2.setNumThreads(1)
    _work["maker"] = PairMaker(drawings)


def _make(number: int) -> Pair:
    return _work["maker"].make(number)
