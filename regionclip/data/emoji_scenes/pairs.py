"""Captioned pictures of the small world, made when they are read: nothing is stored."""

from __future__ import annotations

import json
from pathlib import Path

from numpy.random import PCG64, Generator, SeedSequence

from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.data.emoji_scenes.captions import captions_of
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.data.emoji_scenes.datasets import SPLITS
from regionclip.data.emoji_scenes.drawings import Drawings
from regionclip.data.emoji_scenes.scenes import SceneMaker, SceneSettings
from regionclip.data.emoji_scenes.writing import jpeg_bytes
from regionclip.data.image_text.pairs import Pair, PairSource

PAIRS = 1_000_000
"""More than any training of the small world looks at."""

SCENES_IN = 5
"""One picture of so many is a whole scene, the others show one thing each."""

ONE_THING = SceneSettings(sides=(96, 128, 160), objects=(1, 1), object_side=(56, 150), tail=1, strokes=4)
SEED = 11


class EmojiPairs(PairSource):
    """Pictures with captions: one thing and a sentence about it, or a scene and what stands out in it.

    No boxes and no crops of scenes, as in the pictures of the web that CLIP learned from. All concepts
    come, novel ones too: they are named, and never located.
    """

    def __init__(self, root: Path) -> None:
        """Open a folder of the small world; raises `UserError` without its drawings."""
        drawings = [Drawings(root / "drawings", style) for style in SPLITS["train"].styles]
        self._things = SceneMaker(drawings, read_concepts(), SEED, ONE_THING)
        self._scenes = SceneMaker(drawings, read_concepts(), SEED)
        self.group_sizes = [PAIRS]

    def __getitem__(self, number: int) -> Pair:
        """Make a pair."""
        if number % SCENES_IN == 0:
            scene = self._scenes.make(number)
            captions = captions_of(scene, SEED, number)
        else:
            scene = self._things.make(number)
            random = Generator(PCG64(SeedSequence([SEED, number, 2])))
            template = PROMPT_TEMPLATES[random.integers(len(PROMPT_TEMPLATES))]
            captions = [fill_template(template, item.concept.name) for item in scene.objects] or ["nothing"]
        return Pair(f"emoji {number}", jpeg_bytes(scene), json.dumps({"captions": captions}))
