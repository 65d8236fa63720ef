"""The CLIP towers as plain torch modules; this package knows nothing of Detectron2."""

from regionclip.clip.architectures import (
    CLIPArchitecture,
    architecture_from_depth,
    get_architecture,
    register_architecture,
)
from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.class_embeddings import load_class_embeddings, load_concepts
from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.clip.resnet import ModifiedResNet

__all__ = [
    "PROMPT_TEMPLATES",
    "AttentionPool2d",
    "CLIPArchitecture",
    "ModifiedResNet",
    "architecture_from_depth",
    "fill_template",
    "get_architecture",
    "load_class_embeddings",
    "load_concepts",
    "register_architecture",
]
