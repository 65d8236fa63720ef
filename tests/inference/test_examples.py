"""Example images in place of class names: embeddings, their place among words, files, and the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from regionclip import Example, RegionCLIP
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.inference.examples import EmbeddedExamples, join_examples, parse_examples
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.cora import tiny as cora
from tests.methods.lp_ovod import tiny as lp_ovod

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
BOX = (10.0, 20.0, 90.0, 80.0)


@pytest.fixture
def detector(detector_folder):
    return RegionCLIP.from_pretrained(detector_folder, device="cpu")


def unit_embedding(detector, photo, box):
    detector.set_image(photo)
    detector.set_vocabulary(["anything"], background=None)
    found = detector.predict([list(box)], embeddings=True)
    return F.normalize(torch.from_numpy(found.embeddings[0]), dim=0)


def test_a_class_is_the_mean_of_its_examples(detector):
    units = [unit_embedding(detector, photo, BOX) for photo in PHOTOS[:2]]
    group = [Example(photo, BOX) for photo in PHOTOS[:2]]
    vocabulary = detector.set_vocabulary(background=None, examples={"lamp": group})
    expected = F.normalize((units[0] + units[1]) / 2, dim=0)
    torch.testing.assert_close(vocabulary.embeddings[0], expected, atol=1e-5, rtol=1e-4)
    assert vocabulary.names == ("lamp",) and len(vocabulary.examples[0]) == 2
    detector.set_image(PHOTOS[2])
    assert {name for _, _, name in detector.predict(threshold=0.0)} == {"lamp"}


def test_an_example_names_its_own_box_among_words(detector):
    examples = {"lamp": [Example(PHOTOS[0], BOX)]}
    vocabulary = detector.set_vocabulary(["cat", "dog", "traffic cone"], background=None, examples=examples)
    assert vocabulary.names == ("cat", "dog", "traffic cone", "lamp")
    assert vocabulary.examples[:3] == ((), (), ())
    assert vocabulary.examples[3] == (f"{PHOTOS[0]}:10,20,80,60",)
    detector.set_image(PHOTOS[0])
    assert detector.predict([list(BOX)]).names == ["lamp"]


def test_examples_are_moved_to_where_text_embeddings_are():
    """Region embeddings around one mean, text embeddings around another: cosines of both kinds are alike."""
    regions, texts = (deterministic_text_embeddings(name, 400, 64) for name in ("regions", "texts"))
    axes = deterministic_text_embeddings("axes", 2, 64)
    regions, texts = (
        F.normalize(F.normalize(rows, dim=1) + 1.5 * F.normalize(axis, dim=0), dim=1)
        for rows, axis in zip((regions, texts), axes, strict=True)
    )
    center = regions.mean(dim=0)
    found = EmbeddedExamples(("lamp",), regions[:1], center, (("photo",),))
    words = Vocabulary(tuple(f"word {i}" for i in range(400)), texts, torch.arange(400))
    joined = join_examples(words, found, texts.mean(dim=0))
    others = regions[1:]
    raw, moved = (float((others @ row).mean()) for row in (regions[0], joined.embeddings[-1]))
    of_words = (others @ texts.T).mean(dim=0)
    assert raw > float(of_words.max())
    assert float(of_words.min()) < moved < float(of_words.max())
    assert float(regions[0] @ joined.embeddings[-1]) > float((regions[0] @ texts.T).max())


def test_a_word_with_examples_is_the_mean_of_both():
    rows = F.normalize(deterministic_text_embeddings("rows", 3, 16), dim=1)
    words = Vocabulary(("Cat", "dog"), 2 * rows[:2], torch.arange(2))
    joined = join_examples(words, EmbeddedExamples(("cat",), rows[2:], torch.zeros(16), (("a.jpg",),)), torch.zeros(16))
    assert joined.names == ("Cat", "dog") and joined.examples == (("a.jpg",), ())
    torch.testing.assert_close(joined.embeddings[0], F.normalize(rows[0] + rows[2], dim=0))
    torch.testing.assert_close(joined.embeddings[1], rows[1])


def test_a_vocabulary_file_keeps_examples_and_where_they_are_from(detector, tmp_path):
    examples = {"lamp": [Example(PHOTOS[0], BOX)]}
    made = detector.set_vocabulary(["cat | kitten", "dog"], background=None, examples=examples)
    read = Vocabulary.from_file(made.save(tmp_path / "words.safetensors"))
    assert read.names == ("cat", "dog", "lamp") and read.examples == made.examples
    assert torch.equal(read.embeddings, made.embeddings) and read.synonyms[-1] == ("lamp",)
    assert read.without(["dog"]).examples == (made.examples[0], made.examples[2])
    assert made.rows_of_words() == {}  # a row with examples is not that of its word
    again = detector.set_vocabulary(tmp_path / "words.safetensors", background=None)
    assert again.names == made.names


def test_images_in_memory_are_examples(detector):
    pixels = np.array(Image.open(PHOTOS[0]).convert("RGB"))
    vocabulary = detector.set_vocabulary(background=None, examples={"lamp": [Example(pixels, BOX)]})
    assert vocabulary.examples == (("an image in memory:10,20,80,60",),)


@pytest.mark.parametrize(
    ("words", "examples", "message"),
    [
        (["cat"], {"lamp": [Example(PHOTOS[0])]}, "expected an image with a box among the examples, got crops only"),
        (
            (),
            {"lamp": [Example(PHOTOS[0], BOX)], "Lamp ": [Example(PHOTOS[0], BOX)]},
            "each class once, got more than",
        ),
        ((), {"a | b": [Example(PHOTOS[0], BOX)]}, "class names without"),
        ((), [Example(PHOTOS[0], BOX)], "a mapping from class names to examples, got list"),
        ((), {"lamp": []}, "examples of lamp: expected at least one image, got none"),
        (
            (),
            {"lamp": [Example(PHOTOS[0], (300.0, 300.0, 400.0, 400.0))]},
            "example .* of lamp, row 0: expected boxes",
        ),
    ],
)
def test_bad_examples_are_one_clear_error(detector, words, examples, message):
    with pytest.raises(UserError, match=message):
        detector.set_vocabulary(words, background=None, examples=examples)


def test_an_unreadable_example_is_one_clear_error(command, detector_folder, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    shutil.copy(PHOTOS[0], tmp_path / "good.jpg")
    given = ["--words", "cat", "--model", detector_folder, "--device", "cpu"]
    code, _, error = command("detect", "good.jpg", *given, "--example", "pallet=broken.jpg:1,1,5,5")
    assert code == 2 and "Traceback" not in error
    assert "example broken.jpg:1,1,5,5 of pallet: expected a readable image, got" in error


def test_options_name_boxes_crops_and_folders(tmp_path):
    (tmp_path / "crops").mkdir()
    for photo in PHOTOS[:2]:
        shutil.copy(photo, tmp_path / "crops")
    (tmp_path / "crops" / "notes.txt").write_text("no image")
    found = parse_examples([f"a  pallet={PHOTOS[0]}:10,20,80.5,60", f"cone={tmp_path / 'crops'}", f"cone={PHOTOS[2]}"])
    assert found["a pallet"] == [Example(PHOTOS[0], (10.0, 20.0, 90.5, 80.0))]
    assert [example.box for example in found["cone"]] == [None] * 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pallet", "no name and image"),
        ("pallet=", "no name and image"),
        ("pallet=absent.jpg", "no such file or folder"),
        (f"pallet={PHOTOS[0]}:1,2,0,4", "a width and a height above 0"),
        (f"pallet={PHOTOS[0]}:1,2,3.4.5,4", "write four numbers"),
        (f"pallet={DATA / 'goldens'}", "a folder without images"),
        (f"pallet={PHOTOS[0].parent}:1,2,3,4", "a box in a folder"),
    ],
)
def test_bad_options_are_one_clear_error(option, message):
    with pytest.raises(UserError, match=message):
        parse_examples([option])


def test_boxes_are_numbers():
    assert Example("a.jpg", np.array([1, 2, 3, 4])).box == (1.0, 2.0, 3.0, 4.0)
    for box in ((), (1, 2, 3), "abcd", 5):
        with pytest.raises(UserError, match="box of an example: expected four numbers"):
            Example("a.jpg", box)


def test_options_of_one_class_are_joined_whatever_their_case():
    found = parse_examples([f"Cone={PHOTOS[0]}: 1, 2, 3, 4", f"cone={PHOTOS[1]}"], matte="black")
    assert list(found) == ["Cone"] and [example.box for example in found["Cone"]] == [(1.0, 2.0, 4.0, 6.0), None]
    assert {example.matte for example in found["Cone"]} == {"black"}


def test_an_image_of_several_examples_is_encoded_once(detector, monkeypatch):
    calls, encode = [], detector.model.encode_images
    monkeypatch.setattr(detector.model, "encode_images", lambda *a, **k: calls.append(1) or encode(*a, **k))
    boxes = [BOX, (5.0, 5.0, 60.0, 60.0)]
    detector.set_vocabulary(["cat"], examples={"lamp": [Example(PHOTOS[0], box) for box in boxes]})
    assert len(calls) == 1


def test_examples_alone_are_refused_next_to_words(detector, tmp_path):
    alone = detector.set_vocabulary(background=None, examples={"lamp": [Example(PHOTOS[0], BOX)]})
    path = alone.save(tmp_path / "alone.safetensors")
    assert detector.set_vocabulary(path, background=None).names == ("lamp",)
    with pytest.raises(
        UserError, match="expected embeddings that can stand next to words, got those of examples alone"
    ):
        detector.set_vocabulary(path, background=["cat", "dog"])


def test_a_synonym_with_examples_belongs_to_its_class(detector):
    made = detector.set_vocabulary(["cat | kitten"], background=None, examples={"Kitten": [Example(PHOTOS[0], BOX)]})
    assert made.names == ("cat",) and len(made.examples[0]) == 1


def test_detectors_that_look_names_up_refuse_examples(embedding_file):
    cfg = load_config(lp_ovod.CONFIG, flat(lp_ovod.OVERRIDES | {"DATASETS.TEST": "()"}))
    model = build_model(cfg)
    fill_deterministic(model)
    names = model.known_names[:2]
    vocabulary = Vocabulary(names, deterministic_text_embeddings("names", 2, 32), torch.arange(2), model="tiny_clip")
    detector = RegionCLIP(model, cfg, embedder=lambda: None, vocabulary=vocabulary)
    with pytest.raises(UserError, match="examples: expected a detector that compares regions with embeddings alone"):
        detector.set_vocabulary(vocabulary, background=None, examples={names[0]: [Example(PHOTOS[0], BOX)]})


def test_class_names_condition_cora_and_its_examples_need_none():
    cfg = load_config(cora.CONFIG, flat(cora.OVERRIDES | {cora.EMBEDDINGS: "", "DATASETS.TEST": "()"}))
    model = build_model(cfg)
    fill_deterministic(model)
    words = Vocabulary(
        ("cat", "dog"), deterministic_text_embeddings("names", 2, 32), torch.arange(2), model="tiny_clip"
    )
    detector = RegionCLIP(model, cfg, embedder=lambda: None, vocabulary=words)
    made = detector.set_vocabulary(words, background=None, examples={"lamp": [Example(PHOTOS[0], BOX)]})
    assert made.names == ("cat", "dog", "lamp") and bool(torch.isfinite(made.embeddings).all())


def test_the_command_detects_by_examples(command, detector_folder, tmp_path):
    given = [PHOTOS[0], "--model", detector_folder, "--device", "cpu", "--background", "none", "--threshold", "0"]
    example = ["--example", f"lamp={PHOTOS[1]}:10,20,80,60"]
    saved = ["--save-vocabulary", tmp_path / "words.safetensors"]
    code, _, error = command("detect", *given, "--words", "cat", *example, *saved, "--output", "first")
    assert code == 0, error
    content = json.loads((tmp_path / "first" / "detections.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["cat", "lamp"]
    code, _, error = command("detect", *given, "--vocabulary", tmp_path / "words.safetensors", "--output", "second")
    assert code == 0, error
    assert json.loads((tmp_path / "second" / "detections.json").read_text()) == content
    code, _, error = command("detect", *given, "--example", "lamp=absent.jpg", "--output", "third")
    assert code == 2 and "--example lamp=absent.jpg: expected NAME=IMAGE" in error
    assert not (tmp_path / "third").exists()
