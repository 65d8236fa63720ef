"""Vocabularies: words to embeddings, files, provenance, and bad input."""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from regionclip.clip.architectures import get_architecture
from regionclip.clip.embedding_cache import EmbeddingCache
from regionclip.clip.prompts import PROMPT_ENSEMBLES, PROMPT_TEMPLATES, fill_template, prompt_ensemble
from regionclip.clip.text_encoder import tokenize
from regionclip.clip.vocabulary import Classifier, Vocabulary, read_class_names
from regionclip.data.class_lists import CLASS_LISTS, PUBLISHED_EMBEDDINGS, names_of_published
from regionclip.errors import UserError
from regionclip.files import cache_folder
from regionclip.inference import text_encoder as text
from regionclip.inference.text_encoder import load_embedder
from regionclip.inference.vocabularies import VocabularyOptions, make_vocabulary, save_vocabulary, split_words
from tests.helpers.paths import DATA

TINY_CLIP = get_architecture(str(DATA / "tiny_clip.json"))


@pytest.fixture(scope="module")
def embedder(detector_folder):
    return load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"))


def slow_embedding(embedder, word, templates):
    """Embed one prompt at a time, all 77 places of it."""
    ids = [tokenize([fill_template(template, word)], embedder.tokenizer) for template in templates]
    with torch.no_grad():
        return torch.cat([embedder.encoder.token_embeddings(row)[:, row.argmax()] for row in ids])


WORDS = ["cat", "traffic cone", "a very long description of a small red fire hydrant, seen from above", "猫", "قطة"]


def test_words_become_the_mean_over_upstreams_prompts(embedder):
    vocabulary = Vocabulary.from_names(WORDS, embedder)
    expected = torch.stack([slow_embedding(embedder, word, PROMPT_TEMPLATES).mean(dim=0) for word in WORDS])
    torch.testing.assert_close(vocabulary.embeddings, expected, atol=2e-6, rtol=1e-5)
    assert vocabulary.names == tuple(WORDS)
    assert (vocabulary.model, vocabulary.dim, len(vocabulary)) == ("tiny_clip", 32, 5)
    assert vocabulary.templates.startswith("regionclip ")


def test_coras_templates_average_unit_vectors(embedder):
    vocabulary = Vocabulary.from_names(WORDS[:2], embedder, templates="cora")
    units = [F.normalize(slow_embedding(embedder, word, PROMPT_TEMPLATES[1:]), dim=1) for word in WORDS[:2]]
    expected = F.normalize(torch.stack([unit.mean(dim=0) for unit in units]), dim=1)
    torch.testing.assert_close(vocabulary.embeddings, expected, atol=2e-6, rtol=1e-5)
    assert len(PROMPT_ENSEMBLES["cora"].templates) == 80
    assert vocabulary.normalized


def test_own_templates_from_a_list_and_a_file(embedder, tmp_path):
    (tmp_path / "templates.txt").write_text("the {}\n\n{} at night\n")
    one = Vocabulary.from_names(["cat"], embedder, templates=str(tmp_path / "templates.txt"))
    other = Vocabulary.from_names(["cat"], embedder, templates=["the {}", "{} at night"])
    expected = slow_embedding(embedder, "cat", ["the {}", "{} at night"]).mean(dim=0)
    assert torch.equal(one.embeddings, other.embeddings)
    torch.testing.assert_close(one.embeddings[0], expected, atol=2e-6, rtol=1e-5)
    assert one.templates == other.templates != Vocabulary.from_names(["cat"], embedder).templates


@pytest.mark.parametrize("templates", [[], ["a photo"], "nothing", ""])
def test_bad_templates_are_errors(templates):
    with pytest.raises(UserError, match="templates: expected"):
        prompt_ensemble(templates)


def test_the_best_synonym_counts_or_their_mean(embedder):
    words = [["cat", "kitten"], "dog"]
    singles = Vocabulary.from_names(["cat", "kitten", "dog"], embedder)
    regions = F.normalize(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    single = Classifier(singles)(regions)
    best = Vocabulary.from_names(words, embedder)
    assert best.names == ("cat", "dog")
    assert best.synonyms == (("cat", "kitten"), ("dog",))
    expected = torch.stack([single[:, :2].amax(dim=1), single[:, 2]], dim=1)
    torch.testing.assert_close(Classifier(best)(regions), expected)
    mean = Vocabulary.from_names(words, embedder, synonyms="mean")
    unit = F.normalize(singles.embeddings, dim=1)
    centre = F.normalize(unit[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(Classifier(mean)(regions)[:, 0], regions @ centre, atol=1e-6, rtol=1e-5)


def test_a_bar_stands_between_synonyms_everywhere(embedder, tmp_path):
    wanted = Vocabulary.from_names([["cat", "kitten", "tom"], ["dog"]], embedder, templates="single")
    (tmp_path / "words.txt").write_text("cat | kitten|tom\ndog\n")
    for words in (
        ["cat|kitten | tom", "dog"],
        [["cat|kitten", "tom"], "dog"],
        read_class_names(tmp_path / "words.txt"),
    ):
        made = Vocabulary.from_names(words, embedder, templates="single")
        assert (made.names, made.synonyms) == (("cat", "dog"), (("cat", "kitten", "tom"), ("dog",)))
        assert torch.equal(made.embeddings, wanted.embeddings)
    mean = Vocabulary.from_names(["cat|kitten", "dog"], embedder, templates="single", synonyms="mean")
    save_vocabulary(mean, tmp_path / "words.pth")
    assert (tmp_path / "words.txt").read_text() == "cat | kitten\ndog\n"
    read = Vocabulary.from_file(tmp_path / "words.pth")
    assert (read.names, read.synonyms) == (("cat", "dog"), (("cat", "kitten"), ("dog",)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "vocabulary: expected at least one word, got none"),
        (["cat", "   "], "word 2 of the vocabulary: expected letters, got ''"),
        (["cat", ""], "word 2 of the vocabulary: expected letters, got ''"),
        ([["cat", " "]], "word 1 of the vocabulary: expected letters"),
        ([[]], "word 1 of the vocabulary: expected letters"),
        (["cat", "dog", "cat"], "expected each word once, got 'cat' = 'cat'"),
        (["Cat", "dog", "cat"], "expected each word once, got 'Cat' = 'cat'"),
        (["traffic cone", "traffic  cone"], "expected each word once"),
        ([["cat", "dog"], "dog"], "expected each word once, got 'dog' = 'dog'"),
        (["word " * 101 + "one", "word " * 101 + "two"], "expected each word once"),
        (["<|endoftext|> cat"], "expected words alone, got '<|endoftext|> cat'"),
    ],
)
def test_words_that_mean_nothing_or_the_same_are_errors(words, message, embedder):
    with pytest.raises(UserError) as caught:
        Vocabulary.from_names(words, embedder)
    assert message in str(caught.value)


def test_a_file_says_what_it_is(embedder, tmp_path):
    vocabulary = Vocabulary.from_names([["cat", "kitten"], "dog"], embedder)
    path = vocabulary.save(tmp_path / "words.safetensors")
    read = Vocabulary.from_file(path)
    assert torch.equal(read.embeddings, vocabulary.embeddings)
    assert torch.equal(read.class_of_row, vocabulary.class_of_row)
    for name in ("names", "synonyms", "model", "text_weights", "templates", "normalized"):
        assert getattr(read, name) == getattr(vocabulary, name), name
    with pytest.raises(UserError, match=r"ends in .safetensors"):
        vocabulary.save(tmp_path / "words.pth")


def test_a_changed_file_is_refused(embedder, tmp_path):
    path = Vocabulary.from_names(["cat", "dog"], embedder).save(tmp_path / "words.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected embeddings with the hash they were written with"):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"embeddings": torch.zeros(2, 4)}, {"names": '["a", "b"]'}, "expected a direction for each class, got zeros"),
        ({"embeddings": torch.ones(0, 4)}, {"names": "[]"}, "expected rows of class 0, 1, ..."),
        ({"embeddings": torch.ones(2, 4), "class_of_row": torch.tensor([0])}, {"names": '["a"]'}, "expected rows of"),
        ({"embeddings": torch.ones(2, 4), "class_of_row": torch.tensor([1, 0])}, {}, "expected rows of class"),
        ({"embeddings": torch.ones(2, 4), "class_of_row": torch.tensor([0, 2])}, {}, "expected rows of class"),
        ({"embeddings": torch.ones(2, 4)}, {"names": "["}, "names: expected a JSON list"),
    ],
)
def test_files_with_something_else_are_refused(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "v.safetensors", metadata)
    with pytest.raises(UserError) as caught:
        Vocabulary.from_file(tmp_path / "v.safetensors")
    assert message in str(caught.value)


def test_words_are_taken_out_as_clip_reads_them(embedder):
    vocabulary = Vocabulary.from_names([["cat", "dog"], "Traffic  Cone", "bird"], embedder)
    rest = vocabulary.without(["Dog", "traffic, cone"])
    assert rest.names == ("cat", "bird")
    assert rest.synonyms == (("cat",), ("bird",))
    assert torch.equal(rest.embeddings, vocabulary.embeddings[[0, 3]])
    assert rest.class_of_row.tolist() == [0, 1]
    assert vocabulary.without(["cat", "dog", "bird", "traffic cone"]) is None


def test_upstreams_files_get_names(tmp_path):
    torch.save(torch.rand(3, 32), tmp_path / "mine.pth")
    with pytest.raises(UserError, match="expected names of its 3 classes, got 0"):
        Vocabulary.from_file(tmp_path / "mine.pth")
    (tmp_path / "mine.txt").write_text("cat\n\ndog | puppy\nfire hydrant\n")
    read = Vocabulary.from_file(tmp_path / "mine.pth")
    assert read.names == ("cat", "dog", "fire hydrant")
    assert read.synonyms == (("cat",), ("dog", "puppy"), ("fire hydrant",))
    assert Vocabulary.from_file(tmp_path / "mine.pth", names=["a", "b", "c"]).names == ("a", "b", "c")
    torch.save(torch.rand(65, 640), tmp_path / "coco_65_cls_emb_rn50x4.pth")
    path = tmp_path / "coco_65_cls_emb_rn50x4.pth"
    assert make_vocabulary(path, lambda: None, VocabularyOptions()).names == tuple(CLASS_LISTS["coco65"]())
    save_file({"embeddings": torch.rand(2, 4)}, tmp_path / "bare.safetensors", {"names": json.dumps(["a", "b"])})
    assert Vocabulary.from_file(tmp_path / "bare.safetensors").names == ("a", "b")


def test_a_vocabulary_of_another_clip_is_refused(embedder):
    vocabulary = Vocabulary.from_names(["cat"], embedder)
    vocabulary.require_fit(32, "tiny_clip", embedder.weights_hash)
    vocabulary.require_fit(32, "tiny_clip")
    for arguments, found in [
        ((1024, "RN50"), "embeddings of RN50, width 1024, got tiny_clip, width 32"),
        ((32, "RN50"), "embeddings of RN50, width 32, got tiny_clip, width 32"),
        ((32, "tiny_clip", "0123456789abcdef"), "expected embeddings of text weights 0123456789abcdef"),
    ]:
        with pytest.raises(UserError) as caught:
            vocabulary.require_fit(*arguments)
        assert found in str(caught.value)


def test_word_lists_have_the_published_sizes():
    sizes = {name: len(words()) for name, words in CLASS_LISTS.items()}
    of_emoji = {"emoji": 1174, "emoji880": 880, "emoji294": 294}
    assert sizes == {"coco": 80, "coco65": 65, "coco48": 48, "coco17": 17, "lvis": 1203, "lvis866": 866} | of_emoji
    assert set(CLASS_LISTS["coco65"]()) < set(CLASS_LISTS["coco"]())
    assert set(CLASS_LISTS["lvis866"]()) < set(CLASS_LISTS["lvis"]())
    assert not [word for words in CLASS_LISTS.values() for word in words() if "_" in word or "(" in word]
    assert names_of_published("some/lvis_1203_cls_emb_rn50x4.pth") == CLASS_LISTS["lvis"]()
    assert set(PUBLISHED_EMBEDDINGS) < set(CLASS_LISTS)


@pytest.mark.parametrize("name", ["coco", "lvis", "emoji"])
def test_the_words_of_a_list_can_be_told_apart(name, embedder):
    vocabulary = make_vocabulary(name, lambda: embedder, VocabularyOptions(templates="single"))
    assert vocabulary.names == tuple(CLASS_LISTS[name]())


def test_what_is_neither_list_nor_file_is_an_error(embedder, tmp_path):
    with pytest.raises(UserError, match="expected a list of words, coco, coco65"):
        make_vocabulary("cats", lambda: embedder, VocabularyOptions())
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(UserError, match="expected at least one of the words, got none"):
        make_vocabulary(tmp_path / "empty.txt", lambda: embedder, VocabularyOptions())
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="expected text in UTF-8"):
        read_class_names(tmp_path / "latin.txt")
    assert split_words("cat | kitten, traffic cone,dog") == [["cat", "kitten"], ["traffic cone"], ["dog"]]
    for words in ([1, 2], [b"cat"], [None], [["cat", 3]], ["cat\udcff"]):
        with pytest.raises(UserError, match=r"word . of the vocabulary: expected text"):
            Vocabulary.from_names(words, embedder)
    for words in (None, 3, b"cat"):
        with pytest.raises(UserError, match="vocabulary: expected words, a name or a file"):
            make_vocabulary(words, lambda: embedder, VocabularyOptions())
    with pytest.raises(UserError, match="expected a list of words"):
        make_vocabulary("cat, " * 99, lambda: embedder, VocabularyOptions())
    with pytest.raises(UserError, match="synonyms: expected max or mean"):
        VocabularyOptions(synonyms="avg")


class Counting:
    """Counts the words that pass through a text encoder."""

    def __init__(self, embedder):
        self.words = []
        whole = embedder._embed
        embedder._embed = lambda words, ensemble: self.words.extend(words) or whole(words, ensemble)


def test_the_cache_keeps_words_by_weights_and_templates(detector_folder, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    embedder = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    first = Vocabulary.from_names(["cat", "dog"], embedder).embeddings
    again = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    counting = Counting(again)
    assert torch.equal(Vocabulary.from_names(["dog", "cat", "bird"], again).embeddings[[1, 0]], first)
    assert counting.words == ["bird"]
    Vocabulary.from_names(["cat"], again, templates="single")
    assert counting.words == ["bird", "cat"]
    with torch.no_grad():
        again.encoder.positional_embedding += 1
    again.__dict__.pop("weights_hash")
    Vocabulary.from_names(["cat"], again)
    assert counting.words == ["bird", "cat", "cat"]


def test_words_of_the_cache_need_no_text_encoder(detector_folder, tmp_path, monkeypatch):
    file = tmp_path / "text.safetensors"
    shutil.copy(detector_folder / "text.safetensors", file)
    cache, read = EmbeddingCache(tmp_path / "cache.sqlite"), []
    load = text.load_weights
    monkeypatch.setattr(
        text, "load_weights", lambda *arguments, **options: read.append(1) or load(*arguments, **options)
    )
    expected = Vocabulary.from_names(["cat", "dog"], load_embedder(TINY_CLIP, str(file), cache=cache))
    again = load_embedder(TINY_CLIP, str(file), cache=cache)
    with monkeypatch.context() as without_tokenizer:
        without_tokenizer.setitem(sys.modules, "regionclip.clip.text_encoder", None)
        found = Vocabulary.from_names(["cat", "dog"], again)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert found.text_weights == expected.text_weights
    assert len(read) == 1
    assert len(Vocabulary.from_names(["cat", "bird"], again)) == 2
    assert len(read) == 2


def test_weights_that_were_replaced_are_not_taken_for_those_of_the_cache(detector_folder, tmp_path):
    file = tmp_path / "text.safetensors"
    shutil.copy(detector_folder / "text.safetensors", file)
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    first = load_embedder(TINY_CLIP, str(file), cache=cache)
    waiting = load_embedder(TINY_CLIP, str(file), cache=cache)
    state, weights = file.stat(), load_file(file)
    weights["lang_encoder.positional_embedding"] += 1
    save_file(weights, file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    other = load_embedder(TINY_CLIP, str(file), cache=cache)
    assert other.weights_hash != first.weights_hash == waiting.weights_hash
    with pytest.raises(UserError, match="as when it was first used"):
        Vocabulary.from_names(["cat"], waiting)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    for name in ("REGIONCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert cache_folder() == Path(tempfile.gettempdir()) / "regionclip"


@pytest.mark.parametrize("blob", [b"", b"abc", b"abcd", bytes(32 * 4 + 1), "text", None])
def test_damaged_rows_of_the_cache_are_made_again(blob, detector_folder, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    (tmp_path / "cache.sqlite").write_bytes(b"")
    embedder = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    expected = Vocabulary.from_names(["cat"], embedder).embeddings
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert database.execute("UPDATE embeddings SET row = ?", (blob,)).rowcount == 1
    assert torch.equal(Vocabulary.from_names(["cat"], embedder).embeddings, expected)


@pytest.mark.parametrize("blob", [b"abc", "text", None])
def test_damaged_token_ids_of_the_cache_are_made_again(blob, detector_folder, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    embedder = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    expected = embedder.token_ids(["cat", "Cat", "dog"])
    assert expected[0] == expected[1] != expected[2]
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert database.execute("UPDATE tokens SET ids = ?", (blob,)).rowcount == 3
    assert embedder.token_ids(["cat", "Cat", "dog"]) == expected


def test_a_broken_cache_is_left_out_and_said(detector_folder, tmp_path, caplog):
    (tmp_path / "cache.sqlite").write_bytes(b"no database, but long enough to be looked at" * 40)
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    embedder = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    assert Vocabulary.from_names(["cat"], embedder).names == ("cat",)
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1


def test_an_interrupted_embedding_loses_only_the_last_part(detector_folder, tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    embedder = load_embedder(TINY_CLIP, str(detector_folder / "text.safetensors"), cache=cache)
    whole, calls = embedder._embed, []

    def fail_later(words, ensemble):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(words, ensemble)

    monkeypatch.setattr(embedder, "_embed", fail_later)
    monkeypatch.setattr("regionclip.clip.embedder.WORDS_AT_ONCE", 25)
    with pytest.raises(KeyboardInterrupt):
        Vocabulary.from_names([f"word {i}" for i in range(100)], embedder)
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM embeddings").fetchone() == (len(calls[0]) + len(calls[1]),)
