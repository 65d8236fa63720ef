"""The published tool that embeds concepts, from the command line."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from regionclip.clip.architectures import get_architecture
from regionclip.clip.text_encoder import TextEncoder
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.goldens import assert_agrees
from tests.helpers.paths import DATA, GOLDENS

CONFIG = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_zsinf.yaml"


def weights_of(name, path):
    wrapper = torch.nn.Module()
    wrapper.lang_encoder = TextEncoder(get_architecture(name))
    fill_deterministic(wrapper)
    torch.save({"model": wrapper.state_dict()}, path)
    return path


@pytest.fixture
def extract(run_tool, tmp_path):
    """Run the tool on some lines and return (exit code, output)."""

    def run(text, weights, *overrides):
        (tmp_path / "concepts.txt").write_text(text, encoding="utf-8")
        folders = [
            "INPUT_DIR",
            tmp_path,
            "OUTPUT_DIR",
            tmp_path / "out",
            "MODEL.WEIGHTS",
            weights,
            "MODEL.DEVICE",
            "cpu",
        ]
        return run_tool("extract_concept_features.py", "--config-file", CONFIG, *folders, *overrides)

    return run


SIZES = {"rn50": ("RN50", []), "rn50x4": ("RN50x4", ["MODEL.CLIP.TEXT_EMB_DIM", "640", "MODEL.RESNETS.DEPTH", "200"])}


@pytest.mark.parametrize("key", ["rn50", pytest.param("rn50x4", marks=pytest.mark.slow)])
def test_concept_features_agree_with_the_published(key, extract, tmp_path):
    golden = np.load(GOLDENS / "f_concept_features.npz")
    name, overrides = SIZES[key]
    concepts = json.loads(str(golden["concepts"]))
    published = ["MODEL.CLIP.GET_CONCEPT_EMB", "True", *overrides]
    code, output = extract("\n".join(concepts) + "\n", weights_of(name, tmp_path / "weights.pth"), *published)
    assert code == 0, output
    features = torch.load(tmp_path / "out" / "concept_embeds.pth", weights_only=True)
    assert features.dtype == torch.float32
    assert_agrees(golden, {f"{key}/feats": features.numpy()})


TINY = ["MODEL.CLIP.ARCHITECTURE", str(DATA / "tiny_clip.json")]


def test_names_come_along_blank_lines_do_not_and_one_concept_has_two_dimensions(extract, tmp_path):
    weights = weights_of(TINY[1], tmp_path / "weights.pth")
    code, output = extract("\n  traffic cone \n\n\u732b\ndog, small\n\n", weights, *TINY)
    assert code == 0, output
    assert f"Done: 3 concepts x 32 in {tmp_path}/out/concept_embeds.pth" in output
    features = torch.load(tmp_path / "out" / "concept_embeds.pth", weights_only=True)
    with safe_open(tmp_path / "out" / "concept_embeds.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == ["traffic cone", "\u732b", "dog, small"]
        assert torch.equal(file.get_tensor("embeddings"), features)
    code, _ = extract("dog", weights, *TINY)
    assert code == 0
    assert torch.load(tmp_path / "out" / "concept_embeds.pth", weights_only=True).shape == (1, 32)


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        (" \n\n", "weights.pth", "concepts.txt: expected a concept on each line, got none"),
        ("dog", "missing.pth", "missing.pth: expected a checkpoint file, got no such file"),
        ("dog", "", "weights of lang_encoder: expected in the checkpoint"),
    ],
)
def test_bad_input_is_one_line(text, weights, message, extract, tmp_path):
    weights_of(TINY[1], tmp_path / "weights.pth")
    code, output = extract(text, tmp_path / weights if weights else "", *TINY)
    assert code == 2
    assert [line for line in output.splitlines() if message in line and line.startswith("error: ")]
    assert not (tmp_path / "out").exists()
