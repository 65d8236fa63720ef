"""Published checkpoints of CORA: both branches, both sizes, and prompt files."""

import argparse

import pytest
import torch

from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.layouts.published import rename_for_model
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from tests.helpers.cora import fill
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.cora.tiny import CONFIG, OVERRIDES

CONFIGS = {"localizer": "configs/cora/coco_{}.yaml", "prompt": "configs/cora/region_coco_{}.yaml"}
TRAINED = {
    ("localizer", "rn50"): 12_088_388,
    ("localizer", "rn50x4"): 12_104_772,
    ("prompt", "rn50"): 102_400,
    ("prompt", "rn50x4"): 209_920,
}


def read_listing(branch, size):
    """Return published keys with shapes; no tensor takes memory."""
    lines = (DATA / "cora" / f"{branch}_{size}.txt").read_text().splitlines()
    shapes = {key: shape for key, shape, *_ in (line.split("\t") for line in lines)}
    return {key: torch.zeros(()).expand(eval(shape)) for key, shape in shapes.items()}


@pytest.mark.parametrize(("branch", "size"), TRAINED)
def test_published_keys_are_those_of_the_model(branch, size):
    published = read_listing(branch, size)
    options = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.GET_CONCEPT_EMB", "True"]
    model = build_model(load_config(CONFIGS[branch].format(size), options))
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    renamed = rename_for_model("published", published, model.state_dict())
    assert {key: tuple(value.shape) for key, value in renamed.items()} == expected
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == TRAINED[branch, size]


def as_published(model):
    """Return a state dict under the keys of the published localizer, aliases included."""
    names = {"backbone.attnpool.": "backbone.0.attn_pool.", "backbone.": "backbone.0.body."}
    state = {}
    for key, value in model.state_dict().items():
        old = next((old for old in names if key.startswith(old)), "")
        state[names.get(old, "") + key.removeprefix(old)] = value
    aliases = {
        key.replace("backbone.0.body.layer4.", "backbone.0.layer4.").replace(
            "transformer.decoder.bbox_embed.", "bbox_embed."
        ): value
        for key, value in state.items()
    }
    return aliases | state


@pytest.fixture(scope="module")
def tiny():
    return load_config(CONFIG, flat(OVERRIDES))


def test_the_average_of_a_published_checkpoint_is_loaded(tiny, tmp_path):
    averaged, last = fill(build_model(tiny)), build_model(tiny)
    content = {"model": as_published(last), "model_ema": as_published(averaged), "epoch": 34}
    torch.save({**content, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "checkpoint.pth")
    model = build_model(tiny)
    report = load_weights(model, str(tmp_path / "checkpoint.pth"))
    assert not report.missing and not report.unexpected
    for key, value in averaged.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_without_an_average_the_model_is_loaded(tiny, tmp_path):
    last = fill(build_model(tiny))
    torch.save({"model": as_published(last), "model_ema": -1}, tmp_path / "checkpoint.pth")
    model = build_model(tiny)
    load_weights(model, str(tmp_path / "checkpoint.pth"))
    assert torch.equal(model.query_embed.weight, last.query_embed.weight)


def test_a_prompt_file_replaces_the_positional_embedding(tiny, tmp_path):
    model = fill(build_model(tiny))
    prompt = torch.randn(model.backbone.attnpool.positional_embedding.shape)
    torch.save({"attnpool.positional_embedding": prompt}, tmp_path / "prompt.pth")
    torch.save({"model": as_published(model)}, tmp_path / "checkpoint.pth")
    load_weights(model, str(tmp_path / "checkpoint.pth"), {"region_prompt": str(tmp_path / "prompt.pth")})
    assert torch.equal(model.backbone.attnpool.positional_embedding, prompt)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attnpool.positional_embedding": torch.zeros(50, 2048)}, r"has shape \[50, 2048\], the model needs"),
        (
            {"weight": torch.zeros(3)},
            "PROMPT_WEIGHTS .*: expected attnpool.positional_embedding, got keys such as weight",
        ),
    ],
)
def test_other_files_are_no_prompt(content, message, tiny, tmp_path):
    torch.save(content, tmp_path / "prompt.pth")
    with pytest.raises(UserError, match=message):
        load_weights(
            build_model(tiny), "", {"region_prompt": str(tmp_path / "prompt.pth")}, allow_missing=["backbone.conv"]
        )
