"""Emoji scenes for the steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.files import REPOSITORY, write_json


def find_datasets(prepared: Path | None, output: Path) -> Path:
    """Return a dataset folder with `emoji/val`: the prepared scenes, or a copy of the six demo scenes in `output`."""
    if prepared is not None and (prepared / "datasets" / "emoji" / "val").is_dir():
        return prepared / "datasets"
    folder = output / "datasets"
    (folder / "emoji" / "annotations").mkdir(parents=True, exist_ok=True)
    scenes = REPOSITORY / "datasets" / "demo_scenes"
    images = folder / "emoji" / "val"
    shutil.copytree(scenes, images, ignore=shutil.ignore_patterns("*.json"), dirs_exist_ok=True)
    content = json.loads((scenes / "annotations.json").read_text())
    content["categories"] = [{"id": concept.number + 1, "name": concept.name} for concept in read_concepts()]
    write_json(folder / "emoji" / "annotations" / "val.json", content)
    return folder
