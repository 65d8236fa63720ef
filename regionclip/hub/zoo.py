"""Published models: their configs, files, download URLs and contents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import user_error
from regionclip.files import download_folder, resolve_path
from regionclip.hub.downloads import download, file_hash

FOLDER = "pretrained_ckpt"

DRIVE_FOLDER = "https://drive.google.com/drive/folders/1hzrJBvcCrahoRcqJRqzkIGFO_HUSJIii"
"""RegionCLIP's files; Drive has no URL for a file in a folder, so they are downloaded by hand."""

OPENAI = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class PublishedFile:
    """One file under `pretrained_ckpt/`."""

    path: str
    """Relative to `pretrained_ckpt/`."""
    url: str = ""
    """Empty if it has to be downloaded by hand from `DRIVE_FOLDER`."""
    sha256: str = ""
    """Empty if none is published."""
    shape: tuple[int, ...] = ()
    """Shape of the single tensor, for embeddings; of `key` otherwise."""
    key: str = ""
    """An entry that identifies the content of the file."""

    @property
    def place(self) -> Path:
        """Path where the file is searched."""
        return resolve_path(Path(FOLDER) / self.path)

    @property
    def target(self) -> Path:
        """Where the file is put when it is downloaded."""
        return download_folder() / FOLDER / self.path


@dataclass(frozen=True)
class PublishedModel:
    """A named detector: config, overrides, and files."""

    name: str
    config: str
    weights: str
    """Path relative to `pretrained_ckpt/`, like all following ones."""
    overrides: tuple[str, ...] = ()
    rpn_weights: str = ""
    clip: str = "RN50"
    """CLIP size."""
    vocabulary: str = ""
    """Embeddings of the default vocabulary."""
    suffix: str = ""
    """Suffix of its embedding files."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files required to run the detector."""
        return tuple(path for path in (self.weights, self.rpn_weights) if path)

    @property
    def all_files(self) -> tuple[str, ...]:
        """The required files, the file of the text encoder, and the default vocabulary."""
        text = () if "pretrained" in self.weights else (f"clip/{self.clip}.pt",)
        return (*self.files, *text, self.vocabulary)


_RN50X4 = (
    *("MODEL.CLIP.TEXT_EMB_DIM", "640", "MODEL.RESNETS.DEPTH", "200"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "18"),
)
_LVIS, _COCO = "configs/LVISv1-InstanceSegmentation", "configs/COCO-InstanceSegmentation"


def _models() -> list[PublishedModel]:
    models = []
    for model, size, suffix in (("rn50", (), ""), ("rn50x4", _RN50X4, "_rn50x4")):
        clip = {"rn50": "RN50", "rn50x4": "RN50x4"}[model]
        pretrained = f"regionclip/regionclip_pretrained-cc_{model}.pth"
        lvis = f"concept_emb/lvis_1203_cls_emb{suffix}.pth"
        fpn = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_LVIS}/mask_rcnn_R_50_FPN_1x.yaml")
        c4 = ("MODEL.CLIP.OFFLINE_RPN_CONFIG", f"{_COCO}/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml")
        soft = ("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", "True")
        models += [
            # The published demo: the RPN comes from the main file.
            PublishedModel(
                f"regionclip_pretrained-cc_{model}",
                f"{_LVIS}/CLIP_fast_rcnn_R_50_C4_custom_img.yaml",
                pretrained,
                (*fpn, *size),
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
            ),
            PublishedModel(
                f"regionclip_finetuned-coco_{model}",
                f"{_COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml",
                f"regionclip/regionclip_finetuned-coco_{model}.pth",
                (*c4, *soft, *size),
                rpn_weights="rpn/rpn_coco_48.pth",
                clip=clip,
                vocabulary=f"concept_emb/coco_65_cls_emb{suffix}.pth",
                suffix=suffix,
            ),
            PublishedModel(
                f"regionclip_finetuned-lvis_{model}",
                f"{_LVIS}/CLIP_fast_rcnn_R_50_C4.yaml",
                f"regionclip/regionclip_finetuned-lvis_{model}.pth",
                (*fpn, *soft, "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED", "True", *size),
                rpn_weights="rpn/rpn_lvis_866_lsj.pth",
                clip=clip,
                vocabulary=lvis,
                suffix=suffix,
            ),
        ]
    return models


MODELS = {model.name: model for model in _models()}

SHIPPED = {"emoji": "emoji"}
"""Detectors in the repository: name, and folder relative to `pretrained_ckpt/`."""

DEFAULT_MODEL = os.environ.get("REGIONCLIP_MODEL", "emoji")
"""The default detector of commands."""

_CLIP_HASHES = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
}
_EMBEDDINGS = {
    "coco_65": 65,
    "coco_48_base": 48,
    "coco_17_target": 17,
    "lvis_1203": 1203,
    "lvis_866_base": 866,
}


def _files() -> list[PublishedFile]:
    files = [
        PublishedFile(f"clip/{name}.pt", f"{OPENAI}/{digest}/{name}.pt", digest)
        for name, digest in _CLIP_HASHES.items()
    ]
    last = "backbone.attnpool.c_proj.weight"
    for model, suffix, clip, shape in (
        ("rn50", "", "RN50", (1024, 2048)),
        ("rn50x4", "_rn50x4", "RN50x4", (640, 2560)),
    ):
        for kind in ("pretrained-cc", "finetuned-coco", "finetuned-lvis"):
            files.append(PublishedFile(f"regionclip/regionclip_{kind}_{model}.pth", key=last, shape=shape))
        files.append(PublishedFile(f"clip/teacher_{clip}_student_{clip}_OAI_CLIP.pth", key=last, shape=shape))
        for stem, rows in _EMBEDDINGS.items():
            files.append(PublishedFile(f"concept_emb/{stem}_cls_emb{suffix}.pth", shape=(rows, shape[0])))
    anchors = "proposal_generator.rpn_head.objectness_logits.weight"
    for name, channels, cells in (
        *(("rpn_lvis_866", 256, 3), ("rpn_lvis_866_lsj", 256, 3)),
        *(("rpn_coco_48", 1024, 15), ("rpn_coco_65", 1024, 15), ("rpn_coco_80", 1024, 15)),
    ):
        files.append(PublishedFile(f"rpn/{name}.pth", key=anchors, shape=(cells, channels, 1, 1)))
    return files


FILES = {file.path: file for file in _files()}


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
            f"download {Path(file.path).name} from the folder {Path(file.path).parent} of {DRIVE_FOLDER} to "
            f"{file.target}, or name a mirror with `regionclip download --from ADDRESS`"
        )
        raise user_error(f"{FOLDER}/{file.path}", "the published file", "no such file", fix)
    return download(address, file.target, file.sha256)


def text_weights_of(clip: str) -> str:
    """Return a published checkpoint with the text encoder of a CLIP size, downloaded if none is present.

    Raises:
        UserError: none is published, or it cannot be downloaded.
    """
    names = (f"regionclip/regionclip_pretrained-cc_{clip.lower()}.pth", f"clip/{clip}.pt")
    known = [FILES[name] for name in names if name in FILES]
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
