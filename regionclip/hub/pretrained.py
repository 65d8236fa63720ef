"""Loading a detector and its text encoder by name or path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from regionclip.clip.architectures import CLIPArchitecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.embedding_cache import EmbeddingCache
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture, find_weights
from regionclip.data.class_lists import names_of_published
from regionclip.engine.checkpoint.layouts.published import without_weight_files
from regionclip.engine.checkpoint.run import RunCheckpoints
from regionclip.engine.detector import load_model
from regionclip.errors import UserError, user_error
from regionclip.files import REPOSITORY, resolve_path
from regionclip.hub.fetching import fetch, text_weights_of
from regionclip.hub.zoo import FILES, MODELS, SHIPPED
from regionclip.inference.text_encoder import load_embedder
from regionclip.inference.vocabularies import VocabularyOptions, make_vocabulary
from regionclip.isolation import with_own_settings
from regionclip.published import FOLDER, PublishedModel

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHT_FILES = "config.yaml", ("model.safetensors", "model_final.pth")
"""Files in a detector's folder."""

TEXT_FILE, VOCABULARY_FILE = "text.safetensors", "vocabulary.safetensors"
"""Optional files: a text encoder, and the default vocabulary."""

INSTALL_AGAIN = "install the package again, or name another with --model or REGIONCLIP_MODEL (docs/MODEL_ZOO.md)"
"""What to do where the files that are shipped with the package are missing."""


@dataclass(frozen=True)
class Pretrained:
    """A loaded detector."""

    model: nn.Module
    cfg: CfgNode
    embedder: Callable[[], NameEmbedder]
    """Loads the text encoder."""
    vocabulary: Vocabulary | None = None
    published_suffix: str | None = None


@dataclass(frozen=True)
class TextEncoderSource:
    """Loads the text encoder of a detector when called, in any process and working directory."""

    architecture: CLIPArchitecture
    weights: str
    """File of the detector, which may include the text encoder."""
    device: str
    named: str = ""
    """File given by the user."""
    beside: str = ""
    published_clip: str = ""
    trust_pickle: bool = False

    def __call__(self) -> NameEmbedder:
        """Return a class name embedder; raises `UserError` if no file has the text encoder."""
        file = self.named or (self.beside if Path(self.beside).is_file() else "")
        file = file or (text_weights_of(self.published_clip) if self.published_clip else self.weights)
        cache = EmbeddingCache()
        try:
            return load_embedder(self.architecture, file, self.device, cache=cache, trust_pickle=self.trust_pickle)
        except UserError as error:
            if not error.problems[0].what.startswith("weights of lang_encoder"):
                raise
            fix = "name a checkpoint of the same CLIP that has it (text_weights), such as clip/RN50.pt"
            raise user_error(file, "a text encoder, to embed class names", "none", fix) from error


@dataclass(frozen=True)
class FoundDetector:
    """A detector whose model is not built yet."""

    cfg: CfgNode
    """Not frozen."""
    weights: str
    """File of the model."""
    embedder: Callable[[], NameEmbedder]
    """Loads the text encoder."""
    vocabulary: Path | None = None
    class_list: str = ""
    """Name of a class list, where no file has its embeddings."""
    published_suffix: str | None = None


@dataclass(frozen=True)
class _Parts:
    """Files of a detector."""

    config: str
    overrides: tuple[str, ...]
    weights: str
    text_file: str = ""
    """File of the text encoder, next to the weights; it may be missing."""
    published_clip: str = ""
    """CLIP size whose published text encoder belongs to the weights."""
    vocabulary: Path | None = None
    class_list: str = ""
    published_suffix: str | None = None


@with_own_settings
def load_pretrained(
    name_or_path: str,
    config: str = "",
    overrides: Sequence[str] = (),
    text_weights: str = "",
    device: str = "",
    source: str = "",
    *,
    trust_pickle: bool = False,
) -> Pretrained:
    """Find, build and load a detector; see `RegionCLIP.from_pretrained` for the arguments."""
    found = find_pretrained(name_or_path, config, overrides, text_weights, device, source, trust_pickle=trust_pickle)
    found.cfg.freeze()
    model = load_model(found.cfg, found.weights, trust_pickle=trust_pickle, sets_class_names=True)
    vocabulary = None
    if found.vocabulary is not None and found.vocabulary.is_file():
        vocabulary = Vocabulary.from_file(found.vocabulary, names=names_of_published(found.vocabulary))
    elif found.class_list:
        vocabulary = make_vocabulary(found.class_list, found.embedder, VocabularyOptions("single"))
    return Pretrained(model, found.cfg, found.embedder, vocabulary, found.published_suffix)


def find_pretrained(
    name_or_path: str,
    config: str = "",
    overrides: Sequence[str] = (),
    text_weights: str = "",
    device: str = "",
    source: str = "",
    *,
    trust_pickle: bool = False,
) -> FoundDetector:
    """Find the files of a detector and its config, without files that only training or evaluation read.

    Arguments and errors are those of `load_pretrained`.
    """
    parts = _find(name_or_path, config, source)
    device = require_device(device)
    emptied = ("WEIGHTS", "CLIP.TEACHER_WEIGHTS", "CLIP.TEXT_EMB_PATH", "CLIP.OPENSET_TEST_TEXT_EMB_PATH")
    without_files = [part for key in emptied for part in (f"MODEL.{key}", "")]
    data = ["DATASETS.TEST", "()", "DATASETS.FOLDER", ""]
    fixed = ["MODEL.MASK_ON", "False", *without_files, *data, "MODEL.DEVICE", device]
    fixed += ["MODEL.RALF.RAL.ENABLED", "False"]  # what training needs need not be on this machine
    cfg = load_config(parts.config, [*parts.overrides, *overrides, *fixed])
    check_config(cfg)
    embedder = TextEncoderSource(
        clip_architecture(cfg),
        _wherever(parts.weights),
        device,
        *(_wherever(text_weights), _wherever(parts.text_file), parts.published_clip),
        trust_pickle=trust_pickle,
    )
    return FoundDetector(cfg, parts.weights, embedder, parts.vocabulary, parts.class_list, parts.published_suffix)


def _wherever(file: str) -> str:
    """Return an absolute path, independent of the working directory; empty if there is none."""
    return str(find_weights(file).absolute()) if file else ""


def require_device(device: str = "") -> str:
    """Return a device by name, or the best available; raises `UserError` for an unavailable one."""
    if not device:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()  # the device `meta` holds no data
    except (RuntimeError, AssertionError) as error:
        actual = f"{device!r} ({str(error).splitlines()[0][:100]})"
        raise user_error("device", "cpu, cuda or cuda:N", actual, "name one that this machine has") from error
    return device


def _find(name_or_path: str, config: str, source: str) -> _Parts:
    if config and not find_weights(name_or_path).is_file():
        logger.warning("config %s is not used: detector %s has its own", config, name_or_path)
    if name_or_path in MODELS:
        return _published(MODELS[name_or_path], source)
    path = resolve_path(Path(FOLDER) / SHIPPED[name_or_path]) if name_or_path in SHIPPED else find_weights(name_or_path)
    if path.is_dir():
        return _folder(path)
    if name_or_path in SHIPPED:
        expected = f"its files in {REPOSITORY / path}"
        raise user_error(f"detector {name_or_path}", expected, "no such folder", INSTALL_AGAIN)
    if path.is_file() and config:
        return _Parts(config, (), str(path))
    if path.is_file():
        fix = "name the YAML that the weights belong to, one of configs/"
        raise user_error(f"detector {name_or_path}", "a config with the file of weights", "none", fix)
    expected = f"one of {', '.join((*SHIPPED, *MODELS))}; a folder with {CONFIG_FILE} and weights; or a file of weights"
    raise user_error(f"detector {name_or_path}", expected, "neither", "correct the name or the path")


def _published(model: PublishedModel, source: str) -> _Parts:
    paths = [fetch(FILES[path], source) for path in model.files]
    return _Parts(
        model.config,
        (*model.overrides, *(("MODEL.CLIP.BB_RPN_WEIGHTS", str(paths[1])) if len(paths) > 1 else ())),
        str(paths[0]),
        published_clip=model.clip if model.text_weights else "",
        vocabulary=resolve_path(FILES[model.vocabulary].place) if model.vocabulary else None,
        class_list=model.class_list,
        published_suffix=model.suffix,
    )


def _folder(folder: Path) -> _Parts:
    newest = RunCheckpoints(folder).newest()
    candidates = [folder / name for name in WEIGHT_FILES] + [newest] * (newest is not None)
    weights = next((path for path in candidates if path is not None and path.is_file()), None)
    config = folder / CONFIG_FILE
    if weights is None or not config.is_file():
        missing = CONFIG_FILE if weights else "no weights"
        expected = f"{CONFIG_FILE} and {' or '.join(WEIGHT_FILES)}"
        raise user_error(f"folder {folder}", expected, f"without {missing}", "name a folder of a finished training")
    return _Parts(
        str(config),
        without_weight_files(),  # the weights of a run include its RPN and further parts
        str(weights),
        text_file=str(folder / TEXT_FILE),
        vocabulary=folder / VOCABULARY_FILE,
    )
