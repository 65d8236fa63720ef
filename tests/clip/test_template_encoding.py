"""Names encoded template by template, against whole prompts through the text encoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip import RegionCLIP
from regionclip.clip import embedder as embedder_module
from regionclip.clip.architectures import get_architecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template, prompt_ensemble
from regionclip.clip.template_encoding import is_simple, template_tokens
from regionclip.clip.text_encoder import Tokenizer, tokenize
from regionclip.data.class_lists import CLASS_LISTS
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.paths import DATA

TOKENIZER = Tokenizer()
ODD = [
    "T-shirt",
    "30 cm ruler",
    "rock 'n' roll",
    "crème brûlée",
    "st.",
    "a, b",
    "C++",
    "x" * 200,
    "e-mail",
    "42",
    "漢字",
]


@pytest.fixture(scope="module")
def embedder():
    text = TextEncoderModule(get_architecture(str(DATA / "tiny_clip.json")))
    fill_deterministic(text)
    return NameEmbedder(text.lang_encoder, "tiny", "cpu")


@pytest.mark.parametrize("ensemble", ["regionclip", "cora", "single"])
def test_embeddings_are_those_of_whole_prompts(ensemble, embedder, monkeypatch):
    names = [name for group in CLASS_LISTS["lvis"]()[:100] for name in ([group] if isinstance(group, str) else group)]
    words = list(dict.fromkeys([*names, *ODD]))
    fast = embedder.embed(words, prompt_ensemble(ensemble))
    monkeypatch.setattr(embedder_module, "WORTHWHILE", 10**9)
    whole = embedder.embed(words, prompt_ensemble(ensemble))
    torch.testing.assert_close(fast, whole, atol=1e-5, rtol=1e-5)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.sampled_from(PROMPT_TEMPLATES))
@settings(max_examples=100, deadline=None)
def test_tokens_of_a_prompt_are_those_of_its_parts(name, template):
    around = template_tokens(template, TOKENIZER)
    assert around is not None
    if is_simple(name):
        whole = tokenize([fill_template(template, name)], TOKENIZER)[0]
        parts = [*around.prefix, *TOKENIZER.encode(name), *around.suffix]
        assert whole[: len(parts)].tolist() == parts


@pytest.mark.parametrize("template", ["{}'s photo", "photo-{}", "{}{}", "a {} and a {}", "ein Foto von {}…"])
def test_templates_that_touch_the_name_are_not_taken_apart(template):
    assert template_tokens(template, TOKENIZER) is None


def test_words_of_the_shipped_vocabulary_are_not_embedded_again(monkeypatch, tmp_path):
    monkeypatch.setenv("REGIONCLIP_CACHE", str(tmp_path))  # nothing was embedded before
    detector = RegionCLIP.from_pretrained("emoji", device="cpu")
    shipped = detector.vocabulary
    embedded = []
    compute = NameEmbedder._embed
    monkeypatch.setattr(
        NameEmbedder, "_embed", lambda self, words, *more: embedded.append(words) or compute(self, words, *more)
    )
    made = detector.set_vocabulary("emoji", background=None)
    assert embedded == []
    assert made.names == shipped.names
    assert torch.equal(made.embeddings, shipped.embeddings)
    detector.set_vocabulary([shipped.names[0], "surely not among them"], background=None)
    assert embedded == [["surely not among them"]]
    embedded.clear()
    detector.set_vocabulary([shipped.names[0]], background=None, options=embedder_options("single"))
    assert embedded == [[shipped.names[0]]]


def embedder_options(templates):
    from regionclip import VocabularyOptions

    return VocabularyOptions(templates)
