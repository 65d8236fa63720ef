"""Image and text encoder against open_clip's own models, for every JSON file that open_clip accepts."""

import json
import pickle

import open_clip
import pytest
import torch

from regionclip.clip.architectures import get_architecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.resnet import ModifiedResNet
from regionclip.clip.text_encoder import Tokenizer, tokenize
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.inference.text_encoder import TextEncoderModule

SIZE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
CASES = {"with": {"quick_gelu": True}, "without": {"quick_gelu": False}, "unsaid": {}}
WORDS = ("cat", "traffic cone", "a photo of a dog")


class Whole(torch.nn.Module):
    """An image encoder under the key of detectors."""

    def __init__(self, architecture):
        super().__init__()
        self.backbone = ModifiedResNet(architecture)


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    """Return open_clip's model with random weights, its architecture as we read it, and a file of its weights."""
    name = f"tiny_{request.param}"
    (tmp_path / f"{name}.json").write_text(json.dumps(SIZE | CASES[request.param]))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name, precision="fp32").eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return model, get_architecture(str(tmp_path / f"{name}.json")), tmp_path / "weights.pth"


@torch.no_grad()
def test_both_encoders_are_those_of_open_clip(pair):
    theirs, architecture, weights = pair
    ours = Whole(architecture).eval()
    load_weights(ours, str(weights))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours.backbone.embed_images(images), theirs.encode_image(images), atol=1e-5, rtol=1e-5)
    text = TextEncoderModule(architecture).eval()
    load_weights(text, str(weights))
    tokens = tokenize(WORDS, Tokenizer())
    torch.testing.assert_close(text.lang_encoder(tokens), theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_embeddings_of_another_activation_are_others(pair):
    """The same weights embed differently, so neither caches nor vocabularies may mix them."""
    _, architecture, weights = pair
    text = TextEncoderModule(architecture).eval()
    load_weights(text, str(weights))
    hashes = {}
    for quick in (True, False):
        text.lang_encoder.quick_gelu = quick
        hashes[quick] = NameEmbedder(text.lang_encoder, "tiny", "cpu").weights_hash
    assert hashes[True] != hashes[False]


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_tiny_clip_files_load(prefix, pair, tmp_path):
    """TinyCLIP keeps image and text encoder apart, and saves distributed modules as they are."""
    theirs, architecture, _ = pair
    state = {}
    for key, value in theirs.state_dict().items():
        part = {"visual": "_image_encoder", "logit_scale": "_logit_scale"}.get(key.split(".")[0], "_text_encoder")
        state[f"{part}.{prefix}{key}"] = value
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "tiny_clip.pt")
    ours, text = Whole(architecture).eval(), TextEncoderModule(architecture).eval()
    for module in (ours, text):
        report = load_weights(module, str(tmp_path / "tiny_clip.pt"))
        assert report is None or not report.missing
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours.backbone.embed_images(images), theirs.encode_image(images), atol=1e-5, rtol=1e-5)
    tokens = tokenize(WORDS, Tokenizer())
    torch.testing.assert_close(text.lang_encoder(tokens), theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_kept_token_ids_stay_right():
    tokenizer, texts = Tokenizer(), (*WORDS, "<|startoftext|> cat <|endoftext|>", "")
    expected = [open_clip.SimpleTokenizer().encode(text) for text in WORDS]
    for _ in range(2):
        assert [tokenizer.encode(text) for text in WORDS] == expected
        tokenizer.encode(WORDS[0]).clear()  # a caller may change what it gets
    first = tokenize(texts, tokenizer)
    assert torch.equal(first, tokenize(texts, pickle.loads(pickle.dumps(tokenizer))))
