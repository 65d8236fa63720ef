"""The published models and files of all methods: where they are, downloads, and checks of their content."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import user_error
from regionclip.hub.downloads import download, file_hash
from regionclip.method import methods
from regionclip.published import FOLDER, PublishedFile

OPENAI = "https://openaipublic.azureedge.net/clip/models"

_CLIP_HASHES = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
}

_LISTS = [import_module(method.zoo) for method in methods()]

MODELS = {model.name: model for models in _LISTS for model in models.MODELS}
"""Published detectors by name."""

SHIPPED = {"emoji": "emoji"}
"""Detectors in the repository: name, and folder relative to `pretrained_ckpt/`."""

DEFAULT_MODEL = os.environ.get("REGIONCLIP_MODEL", "emoji")
"""The default detector of commands."""

FILES = {file.path: file for files in _LISTS for file in files.FILES} | {
    f"clip/{name}.pt": PublishedFile(
        f"clip/{name}.pt", f"{OPENAI}/{digest}/{name}.pt", sha256=digest, text_encoder=name
    )
    for name, digest in _CLIP_HASHES.items()
}
"""Published files by their path."""


def fetch(file: PublishedFile, source: str = "") -> Path:
    """Return the path of a published file, downloaded if missing.

    Args:
        file: of `FILES`.
        source: a folder on the web or on the hub (`https://...`, `hf://owner/repository`) with the
            published subfolders; empty uses the publishers' own URL.

    Raises:
        UserError: the file is missing and cannot be downloaded.
    """
    if file.place.is_file():
        return file.place
    address = f"{source.rstrip('/')}/{file.path}" if source else file.url
    if not address:
        fix = (
            f"download {Path(file.path).name} from the folder {Path(file.path).parent} of {file.folder_url} to "
            f"{file.target}, or name a mirror with `regionclip download --from ADDRESS`"
        )
        raise user_error(f"{FOLDER}/{file.path}", "the published file", "no such file", fix)
    return download(address, file.target, file.sha256)


def text_weights_of(clip: str) -> str:
    """Return a published checkpoint with the text encoder of a CLIP size, downloaded if none is present.

    Raises:
        UserError: none is published, or it cannot be downloaded.
    """
    known = [file for file in FILES.values() if file.text_encoder == clip]
    if not known:
        raise user_error(f"text encoder of {clip}", "a checkpoint", "none is published", "name one")
    here = [file.place for file in known if file.place.is_file()]
    return str(here[0] if here else fetch(known[-1]))


def check(file: PublishedFile) -> str:
    """Check a file that exists, and return what was checked: the hash, or an identifying shape.

    Raises:
        UserError: the content differs from the published one.
    """
    if file.sha256:
        if (found := file_hash(file.place)) != file.sha256:
            raise user_error(str(file.place), f"SHA-256 {file.sha256}", found, "remove it and download it again")
        return "hash as published"
    if not file.key:
        load_class_embeddings(file.place, rows=file.shape[0], dim=file.shape[1])
        return f"embeddings {list(file.shape)}"
    state = read_checkpoint(str(file.place)).state
    matching = [value for key, value in state.items() if key.endswith(file.key)]
    if not matching or tuple(matching[0].shape) != file.shape:
        actual = str(list(matching[0].shape)) if matching else f"no such entry among {len(state)}"
        fix = "download the file of this name again"
        raise user_error(str(file.place), f"{file.key} {list(file.shape)}", actual, fix)
    return f"{len(state)} entries, {file.key.split('.')[-2]} {list(file.shape)}"
