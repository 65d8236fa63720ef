"""A small world: scenes of emoji drawings with boxes, masks and captions, made from a seed."""

from regionclip.data.emoji_scenes import datasets
from regionclip.data.emoji_scenes.concepts import Concept, read_concepts
from regionclip.data.emoji_scenes.drawings import STYLES, Drawings, prepare_drawings
from regionclip.data.emoji_scenes.scenes import Scene, SceneMaker, SceneSettings
from regionclip.data.emoji_scenes.writing import write_split

__all__ = [
    "STYLES",
    "Concept",
    "Drawings",
    "Scene",
    "SceneMaker",
    "SceneSettings",
    "datasets",
    "prepare_drawings",
    "read_concepts",
    "write_split",
]
