"""State dicts equal the published listings: keys, shapes, dtypes, parameters and what trains."""

import re
from pathlib import Path

import pytest

from regionclip.config.loading import load_config
from regionclip.modeling.build import build_model
from tests.helpers.paths import DATA, REPOSITORY

LISTINGS = sorted((DATA / "state_dict").glob("*.txt"))


def read_listing(path):
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    entries = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return header, {key: tuple(rest) for key, *rest in entries}


def overrides_of(header, embedding_file):
    """Point the file names of a listing's overrides at files that exist here."""
    width = 640 if "DEPTH 200" in header.get("overrides", "") or "x4" in header["model"] else 1024
    overrides = header.get("overrides", "").split()
    for i, value in enumerate(overrides):
        if value.endswith(".pth"):
            overrides[i] = embedding_file(value, int(re.search(r"\d+", value)[0]), width)
        elif value.endswith(".yaml"):
            overrides[i] = str(next((REPOSITORY / "configs").glob(f"*/{Path(value).name}")))
    if header.get("meta_arch") == "CLIPFastRCNN" and "MODEL.CLIP.CROP_REGION_TYPE" not in overrides:
        overrides += ["MODEL.CLIP.CROP_REGION_TYPE", "RPN"]
    return overrides


@pytest.mark.parametrize("path", LISTINGS, ids=lambda path: path.stem)
def test_state_dict_equals_published_listing(path, embedding_file):
    header, expected = read_listing(path)
    cfg = load_config(header["config"], [*overrides_of(header, embedding_file), "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    parameters = dict(model.named_parameters())
    actual = {}
    for key, value in model.state_dict().items():
        kind = ("buffer", "-")
        if key in parameters:
            kind = ("param", "trainable" if parameters[key].requires_grad else "frozen")
        actual[key] = (str(tuple(value.shape)), str(value.dtype).removeprefix("torch."), *kind)
    assert len(expected) == int(header["total state-dict entries"])
    assert actual == expected
