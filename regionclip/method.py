"""Detection methods: what each declares of itself, and whose a config is.

Names only: a method's code is imported when a model of it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from regionclip.config.key import Key
from regionclip.errors import Problem

if TYPE_CHECKING:
    from detectron2.config import CfgNode

METHODS = ("regionclip",)
"""Packages in `regionclip.methods`; each has its `Method` under the name METHOD."""

Parts = Mapping[str, str]
"""Module of each class or function by the name that configs use, which is its own."""


@dataclass(frozen=True)
class Method:
    """A published detection method."""

    name: str
    """Of its package, its folder of configs and its page in docs/methods."""
    title: str
    """As the paper writes it."""
    paper: str
    """Address of the paper."""
    license: str
    """Of the published code and weights, as SPDX writes it."""
    meta_architectures: Parts
    """What MODEL.META_ARCHITECTURE can be."""
    checks: str
    """Module with `config_problems(cfg)` and `training_problems(cfg)`."""
    roi_heads: Parts = field(default_factory=dict)
    """What MODEL.ROI_HEADS.NAME can be."""
    image_text_architectures: tuple[str, ...] = ()
    """Those of `meta_architectures` that train on image-text pairs."""
    keys: tuple[Key, ...] = ()
    """Its own configuration keys."""
    dead_keys: tuple[Key, ...] = ()
    """Keys of the published code that never had an effect; they merge, with a warning."""
    dead_nodes: tuple[str, ...] = ()
    """Nodes all of whose keys are dead."""
    region_features: Mapping[str, str] = field(default_factory=dict)
    """Values of keys with which region features can be extracted; empty where none can."""

    def config_problems(self, cfg: CfgNode) -> Iterator[Problem]:
        """Yield what in a config contradicts the method."""
        return import_module(self.checks).config_problems(cfg)

    def training_problems(self, cfg: CfgNode) -> Iterator[Problem]:
        """Yield what stands in the way of training with a config that is otherwise good."""
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
    "PROPOSAL_GENERATOR": {"ExactRPN": "regionclip.modeling.proposals.rpn"},
}
"""Parts that no method owns, by the registry of Detectron2 that knows them."""


@cache
def methods() -> tuple[Method, ...]:
    """Return the declarations of all methods."""
    return tuple(import_module(f"regionclip.methods.{name}").METHOD for name in METHODS)


def method_of(cfg: CfgNode) -> Method | None:
    """Return the method of a config, by its meta-architecture; None where that belongs to no method."""
    name = cfg.MODEL.META_ARCHITECTURE
    return next((method for method in methods() if name in method.meta_architectures), None)


def methods_of(cfg: CfgNode) -> list[Method]:
    """Return the methods that own the meta-architecture or the ROI heads of a config."""
    names = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    return [method for method in methods() if names[0] in method.meta_architectures or names[1] in method.roi_heads]


@cache
def register() -> None:
    """Make every part known to Detectron2's registries under its name; its module is imported when it is built."""
    from detectron2 import modeling

    registries = {name: getattr(modeling, f"{name}_REGISTRY") for name in (*SHARED, "ROI_HEADS")}
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
