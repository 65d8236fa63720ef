"""Files of published detectors with initial values, served locally, and the command line."""

import io
import pickle
from dataclasses import replace

import torch
from safetensors.torch import save

from regionclip.clip.image_encoders.clip_vit import build_image_encoder
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture
from regionclip.hub import zoo
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.methods.lp_ovod.checkpoints import published_state as published_lp_ovod
from regionclip.methods.ralf.checkpoints import published_state as published_detpro
from regionclip.modeling.build import build_model
from tests.helpers.paths import DATA

PHOTO = sorted((DATA / "four_photos" / "images").iterdir())[0]

PUBLISHED_STATES = {"lp_ovod": published_lp_ovod, "ralf": published_detpro}
"""By folder: functions to the keys of files that MMDetection wrote."""


def contents(model):
    """Return the files of a detector by path: initial values, under the keys that its publishers use."""
    files = ("MODEL.CLIP.TEXT_EMB_PATH", "", "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", "")
    overrides = [*model.overrides, "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "False", *files]
    cfg = load_config(model.config, overrides)
    state = build_model(cfg).state_dict()
    text = TextEncoderModule(clip_architecture(cfg)).state_dict()
    rpn = {key.replace("offline_", ""): value for key, value in state.items() if key.startswith("offline_")}
    own = {key: value for key, value in state.items() if not (model.rpn_weights and key.startswith("offline_"))}
    backbone = {key: value for key, value in own.items() if key.startswith("backbone.")}
    bare = {key.replace("backbone.", "visual."): value for key, value in backbone.items()}
    bare |= {key.removeprefix("lang_encoder."): value for key, value in text.items()}
    if model.text_weights and clip_architecture(cfg).patch_size:
        # The detector stands on another image encoder than the CLIP of its text encoder.
        visual = build_image_encoder(clip_architecture(cfg)).state_dict()
        bare |= {f"visual.{key}": value for key, value in visual.items()}
    files = {}
    for path in (*model.files, model.text_weights):
        if path.startswith("rpn/"):
            files[path] = as_pickle(rpn) if path.endswith(".pkl") else as_checkpoint(rpn)
        elif path.split("/")[0] in PUBLISHED_STATES:
            files[path] = as_checkpoint(PUBLISHED_STATES[path.split("/")[0]](own))
        elif path.startswith("clip/Tiny"):
            parts = {True: "_image_encoder.module.", False: "_text_encoder.module."}
            files[path] = as_checkpoint({parts[key.startswith("visual.")] + key: part for key, part in bare.items()})
        elif path.startswith("clip/"):
            files[path.replace(".pt", ".safetensors")] = save({key: part.contiguous() for key, part in bare.items()})
        elif path:
            files[path] = as_checkpoint(own | text)
    return files


def as_checkpoint(state):
    buffer = io.BytesIO()
    torch.save({"model": dict(state)}, buffer)
    return buffer.getvalue()


def as_pickle(state):
    return pickle.dumps({"model": {key: value.numpy() for key, value in state.items()}, "__author__": "Detectron2"})


def serve(server, model, monkeypatch):
    """Serve the files of a detector; other files of the list are nowhere."""
    files = contents(model)
    for path, file in zoo.FILES.items():
        served = replace(file, sources=(f"{server.address}/{path}",), md5_prefix="")
        monkeypatch.setitem(zoo.FILES, path, served)
    server.files = {f"/{path}": content for path, content in files.items()}
    return files
