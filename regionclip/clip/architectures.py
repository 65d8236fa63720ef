"""CLIP model sizes by name; other sizes are described by an open_clip JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionclip.errors import user_error
from regionclip.files import resolve_path

HEAD_WIDTH = 64
"""Channels per attention head, in image and text encoder of every CLIP model."""

STAGES = ("res2", "res3", "res4", "res5")

START_OF_TEXT, END_OF_TEXT = 49406, 49407
"""Token ids around every text."""

CONTEXT_LENGTH = 77
"""Tokens of a text with both of them, zero-padded."""

TRANSFORMER_EMBEDDING_DIM = 512
"""Width of the joint space of all transformer detectors."""


@dataclass(frozen=True)
class CLIPArchitecture:
    """Dimensions of a CLIP model with a ModifiedResNet or a transformer as image encoder."""

    name: str
    blocks: tuple[int, ...]
    """Residual blocks in `layer1` to `layer4`; of a transformer, its layers only."""
    width: int
    """Channels after the stem; of a transformer, those of its tokens."""
    embedding_dim: int
    """Width D of the joint image-text space."""
    image_resolution: int
    """Side in pixels of CLIP's square training images; determines the positional embedding."""
    text_width: int
    text_heads: int
    text_layers: int = 12
    context_length: int = CONTEXT_LENGTH
    vocabulary_size: int = 49408
    quick_gelu: bool = True
    """Activation of the transformers: the sigmoid approximation of GELU, as OpenAI's models have; else GELU itself."""
    patch_size: int = 0
    """Side in pixels of the patches of a transformer image encoder; 0 for a ModifiedResNet."""

    @property
    def stage_channels(self) -> dict[str, int]:
        """Output channels by stage name, `res2` to `res5`."""
        return {stage: self.width * 4 * 2**i for i, stage in enumerate(STAGES)}

    @property
    def attention_width(self) -> int:
        """Channels of the attention pool, equal to those of `res5`."""
        return self.width * 32

    @property
    def attention_heads(self) -> int:
        """Heads of the attention pool."""
        return self.attention_width // HEAD_WIDTH

    @property
    def attention_grid(self) -> int:
        """Side of the square token grid of the positional embedding."""
        return self.image_resolution // 32

    @property
    def pooler_resolution(self) -> int:
        """RoIAlign output side that `layer4` (stride 2) turns into the attention grid."""
        return self.attention_grid * 2


_ARCHITECTURES: dict[str, CLIPArchitecture] = {}

_UPSTREAM_DEPTHS = {50: "RN50", 101: "RN101", 200: "RN50x4"}


def register_architecture(architecture: CLIPArchitecture) -> CLIPArchitecture:
    """Register `architecture` under its name; raises `ValueError` if the name has other dimensions already."""
    known = _ARCHITECTURES.setdefault(architecture.name, architecture)
    if known != architecture:
        raise ValueError(f"architecture {architecture.name!r} is already registered with other dimensions: {known}")
    return architecture


register_architecture(CLIPArchitecture("RN50", (3, 4, 6, 3), 64, 1024, 224, 512, 8))
register_architecture(CLIPArchitecture("RN101", (3, 4, 23, 3), 64, 512, 224, 512, 8))
register_architecture(CLIPArchitecture("RN50x4", (4, 6, 10, 6), 80, 640, 288, 640, 10))
register_architecture(CLIPArchitecture("RN50x16", (6, 8, 18, 8), 96, 768, 384, 768, 12))
register_architecture(CLIPArchitecture("RN50x64", (3, 15, 36, 10), 128, 1024, 448, 1024, 16))
register_architecture(CLIPArchitecture("ViT-B/32", (12,), 768, 512, 224, 512, 8, patch_size=32))
register_architecture(CLIPArchitecture("ViT-B/16", (12,), 768, 512, 224, 512, 8, patch_size=16))


def get_architecture(name: str) -> CLIPArchitecture:
    """Return the architecture registered as `name`, or described by the open_clip JSON file `name`.

    Raises:
        UserError: the name is unknown, or the file does not describe a CLIP of ours.
    """
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    if name.endswith(".json") and resolve_path(name).is_file():
        return _from_open_clip_json(resolve_path(name))
    raise user_error(
        "MODEL.CLIP.ARCHITECTURE",
        f"one of {', '.join(_ARCHITECTURES)}, or an open_clip model configuration (.json)",
        repr(name),
        "correct the name or the path",
    )


def architecture_from_depth(depth: int) -> CLIPArchitecture:
    """Return the CLIP size for upstream's `MODEL.RESNETS.DEPTH` (200 means RN50x4).

    Raises:
        UserError: upstream has no CLIP model for this depth.
    """
    if depth not in _UPSTREAM_DEPTHS:
        raise user_error(
            "MODEL.RESNETS.DEPTH",
            "50 (RN50), 101 (RN101) or 200 (RN50x4) for a CLIP backbone",
            str(depth),
            "use one of these, or name the size in MODEL.CLIP.ARCHITECTURE",
        )
    return _ARCHITECTURES[_UPSTREAM_DEPTHS[depth]]


def _from_open_clip_json(path: Path) -> CLIPArchitecture:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        vision, text = content["vision_cfg"], content["text_cfg"]
        is_transformer = isinstance(vision["layers"], int)
        return CLIPArchitecture(
            name=path.stem,
            blocks=(vision["layers"],) if is_transformer else _four_stages(*vision["layers"]),
            width=vision["width"],
            embedding_dim=content["embed_dim"],
            image_resolution=vision["image_size"],
            text_width=text["width"],
            text_heads=text["heads"],
            text_layers=text["layers"],
            context_length=text.get("context_length", 77),
            vocabulary_size=text.get("vocab_size", 49408),
            quick_gelu=bool(content.get("quick_gelu", False)),  # open_clip's default
            patch_size=vision["patch_size"] if is_transformer else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise user_error(
            str(path),
            "an open_clip model configuration with vision_cfg.layers, four stages or one number, and text_cfg",
            f"{type(error).__name__}: {error}",
            "compare it with the RN50.json or ViT-B-32.json that open_clip ships",
        ) from error


def _four_stages(first: int, second: int, third: int, fourth: int) -> tuple[int, ...]:
    return first, second, third, fourth
