"""The published models and files of all methods, and the detector that is taken when none is named."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module

from regionclip.errors import user_error
from regionclip.method import methods
from regionclip.published import PublishedFile, PublishedModel

OPENAI = "https://openaipublic.azureedge.net/clip/models"

_CLIP_HASHES = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
}

_TIMM = (
    ("RN50", "timm/resnet50_clip.openai@00fd56258d8020fda2c9a8b683cf883d477ad3eb", 408, (1024, 2048)),
    ("RN101", "timm/resnet101_clip.openai", 480, (512, 2048)),
    ("RN50x4", "timm/resnet50x4_clip.openai", 714, (640, 2560)),
    ("RN50x16", "timm/resnet50x16_clip.openai", 1160, (768, 3072)),
    ("RN50x64", "timm/resnet50x64_clip.openai", 2490, (1024, 4096)),
    ("ViT-B/32", "timm/vit_base_patch32_clip_224.openai", 605, (768, 512)),
    ("ViT-B/16", "timm/vit_base_patch16_clip_224.openai", 599, (768, 512)),
)
"""OpenAI's weights as open_clip's author stores them: CLIP size, repository, megabytes, shape that identifies it."""


def _clip_files() -> list[PublishedFile]:
    """Return OpenAI's CLIP files: converted ones from the hub, and the archives from OpenAI, which may be gone."""
    files = []
    for name, repository, size, shape in _TIMM:
        stem = name.replace("/", "-")
        digest, archive = _CLIP_HASHES[name], f"clip/{stem}.pt"
        copies = ("hf://jinaai/clip-models/RN50.pt",) if name == "RN50" else ()
        make = partial(PublishedFile, megabytes=size, license="MIT", text_encoder=name)
        sources = (f"{OPENAI}/{digest}/{stem}.pt", *copies)
        files += [
            make(archive, sources, sha256=digest, instead=f"clip/{stem}.safetensors"),
            make(
                f"clip/{stem}.safetensors",
                (f"hf://{repository}/open_clip_model.safetensors",),
                key="visual.proj" if "ViT" in name else "visual.attnpool.c_proj.weight",
                shape=shape,
                instead=archive,
            ),
        ]
    return files


_LISTS = [import_module(method.zoo) for method in methods()]

MODELS = {model.name: model for models in _LISTS for model in models.MODELS}
"""Published detectors by name."""

SHIPPED = {"emoji": "emoji"}
"""Detectors in the repository: name, and folder relative to `pretrained_ckpt/`."""

EMBEDDED = "emoji"
"""The detector that is always there; it knows drawings only."""

FILES: dict[str, PublishedFile] = {
    file.path: file for files in (*(m.FILES for m in _LISTS), _clip_files()) for file in files
}
"""Published files by their path."""

PHOTO_MODELS: tuple[PublishedModel, ...] = tuple(
    sorted((model for model in MODELS.values() if model.rank), key=lambda model: model.rank)
)
"""Detectors of photos that can be the default, the best first."""

OFFERED = "clip_rn50"
"""The photo detector that is offered where none is on disk: all its files have stable addresses."""


def files_of(model: PublishedModel) -> list[PublishedFile]:
    """Return the files that a detector needs for any words, whatever file has its text encoder already."""
    files = [FILES[path] for path in model.files]
    if model.text_weights and not any(file.place.is_file() for file in text_files(model.clip)):
        files.append(FILES[model.text_weights])
    return files


def text_files(clip: str) -> list[PublishedFile]:
    """Return the published files with the text encoder of a CLIP size; raises `UserError` if there is none."""
    known = [file for file in FILES.values() if file.text_encoder == clip]
    if not known:
        raise user_error(f"text encoder of {clip}", "a checkpoint", "none is published", "name one")
    return known


def named_default() -> str:
    """Return $REGIONCLIP_MODEL, the user's own default detector; empty if unset."""
    return os.environ.get("REGIONCLIP_MODEL", "")
