"""Registry of detection methods: their declarations, and the method of a config.

Declarations contain names only: a method's code is imported when one of its models is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from importlib import import_module
from operator import getitem
from typing import TYPE_CHECKING, Any

from regionclip.config.key import Key
from regionclip.errors import Problem

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from regionclip.records import Record

METHODS = ("regionclip", "cora", "lp_ovod", "ralf")
"""Packages in `regionclip.methods`; each has a `Method` named METHOD."""

Parts = Mapping[str, str]
"""Maps the config name of a class or function, which is its own name, to its module."""


@dataclass(frozen=True)
class Method:
    """A published detection method."""

    name: str
    """Name of its package, its config folder and its page in docs/methods."""
    title: str
    """As in the paper."""
    paper: str
    """URL of the paper."""
    license: str
    """SPDX identifier for the published code and weights."""
    meta_architectures: Parts
    """Values of MODEL.META_ARCHITECTURE."""
    checks: str
    """Module with `config_problems(cfg)` and `training_problems(cfg)`."""
    checkpoints: str
    """Module with LAYOUTS and SLOTS, the key layouts of its published files and its weight slots."""
    zoo: str
    """Module with MODELS and FILES, its `PublishedModel`s and `PublishedFile`s."""
    commands: str = ""
    """Module with `app`, a `typer.Typer` of the method's own commands under its name; it imports typer only."""
    records: str = ""
    """Module with `extend_records(cfg, records)`, which adds annotations to cleaned training records."""
    roi_heads: Parts = field(default_factory=dict)
    """Values of MODEL.ROI_HEADS.NAME."""
    image_text_architectures: tuple[str, ...] = ()
    """Those of `meta_architectures` that train on image-text pairs."""
    keys: tuple[Key, ...] = ()
    """The method's own config keys."""
    dead_keys: tuple[Key, ...] = ()
    """Keys of the published code that never had an effect; they are accepted with a warning."""
    dead_nodes: tuple[str, ...] = ()
    """Config nodes with dead keys only."""
    region_features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Allowed config values by key in region feature extraction; empty if not supported."""
    class_conditioned: tuple[str, ...] = ()
    """Those of `meta_architectures` whose own proposals depend on class names; they have no other proposal source."""
    half_precision: tuple[tuple[str, ...], ...] = ()
    """Those of `meta_architectures`, some only with certain RoI heads, that compute in INFERENCE_PRECISION."""
    add_ons: tuple[str, ...] = ()
    """Config keys that switch parts of the method on in detectors of other methods too."""

    def config_problems(self, cfg: CfgNode) -> Iterator[Problem]:
        """Yield the config's contradictions to the method."""
        return import_module(self.checks).config_problems(cfg)

    def extend_records(self, cfg: CfgNode, records: list[Record]) -> list[Record]:
        """Return cleaned training records with the annotations that the config adds to them."""
        return import_module(self.records).extend_records(cfg, records) if self.records else records

    def training_problems(self, cfg: CfgNode) -> Iterator[Problem]:
        """Yield the problems that prevent training with an otherwise valid config."""
        return import_module(self.checks).training_problems(cfg)


SHARED: Mapping[str, Parts] = {
    "META_ARCH": {
        "CLIPGeneralizedRCNN": "regionclip.modeling.generalized_rcnn",
        "CLIPProposalNetwork": "regionclip.modeling.generalized_rcnn",
        "ImageTextCLIP": "regionclip.modeling.image_text_clip",
    },
    "BACKBONE": {
        "build_clip_resnet_backbone": "regionclip.modeling.backbones.clip_resnet",
        "build_clip_resnet_fpn_backbone": "regionclip.modeling.backbones.clip_resnet",
        "build_clip_vit_backbone": "regionclip.modeling.backbones.transformers",
        "build_clip_swin_backbone": "regionclip.modeling.backbones.transformers",
        "build_clip_davit_backbone": "regionclip.modeling.backbones.transformers",
        "build_clip_focal_backbone": "regionclip.modeling.backbones.transformers",
    },
    "PROPOSAL_GENERATOR": {
        "ExactRPN": "regionclip.modeling.proposals.rpn",
        "OLN": "regionclip.modeling.proposals.oln.localizer",
    },
    "ROI_HEADS": {"EnsembleROIHeads": "regionclip.modeling.heads.ensemble"},
}
"""Components shared by all methods, by Detectron2 registry."""


@cache
def methods() -> tuple[Method, ...]:
    """Return the declarations of all methods."""
    return tuple(import_module(f"regionclip.methods.{name}").METHOD for name in METHODS)


def method_of(cfg: CfgNode) -> Method | None:
    """Return the method of a config, by its meta-architecture; None if no method owns it."""
    name = cfg.MODEL.META_ARCHITECTURE
    return next((method for method in methods() if name in method.meta_architectures), None)


def methods_of(cfg: CfgNode) -> list[Method]:
    """Return the methods that own the meta-architecture, the RoI heads or an add-on of a config."""
    name, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    return [
        method
        for method in methods()
        if name in method.meta_architectures or heads in method.roi_heads or _is_added(method, cfg)
    ]


def _is_added(method: Method, cfg: CfgNode) -> bool:
    return any(reduce(getitem, key.split("."), cfg) for key in method.add_ons)


@cache
def register() -> None:
    """Register all components with Detectron2 by name; a module is imported when its component is built."""
    from detectron2 import modeling

    registries = {name: getattr(modeling, f"{name}_REGISTRY") for name in SHARED}
    for name, parts in SHARED.items():
        _register(registries[name], parts)
    for method in methods():
        _register(registries["META_ARCH"], method.meta_architectures)
        _register(registries["ROI_HEADS"], method.roi_heads)


def _register(registry: Any, parts: Parts) -> None:
    for name, module in parts.items():
        registry.register(_built_when_called(name, module))


def _built_when_called(name: str, module: str) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    build.__name__ = name
    return build
