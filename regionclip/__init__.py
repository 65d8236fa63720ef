"""Open-vocabulary object detection: find objects in images by class names that users type."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regionclip.clip.vocabulary import Vocabulary
    from regionclip.config.keys import get_cfg
    from regionclip.config.loading import load_config
    from regionclip.detections import Detections
    from regionclip.inference.examples import Example
    from regionclip.inference.slices import Slices
    from regionclip.inference.vocabularies import VocabularyOptions
    from regionclip.integrations.transformers import pipeline
    from regionclip.predictor import RegionCLIP

__version__ = "0.2.0"

__all__ = [
    "Detections",
    "Example",
    "RegionCLIP",
    "Slices",
    "Vocabulary",
    "VocabularyOptions",
    "get_cfg",
    "load_config",
    "pipeline",
]

_HOMES = {
    "Detections": "regionclip.detections",
    "Example": "regionclip.inference.examples",
    "RegionCLIP": "regionclip.predictor",
    "Slices": "regionclip.inference.slices",
    "Vocabulary": "regionclip.clip.vocabulary",
    "VocabularyOptions": "regionclip.inference.vocabularies",
    "get_cfg": "regionclip.config.keys",
    "load_config": "regionclip.config.loading",
    "pipeline": "regionclip.integrations.transformers",
}


def __getattr__(name: str) -> Any:
    """Import a public name lazily: `import regionclip` alone stays fast and needs no Detectron2."""
    if name not in _HOMES:
        raise AttributeError(f"module 'regionclip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
