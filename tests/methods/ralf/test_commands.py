"""`regionclip ralf`: word sampling, stores, concepts, and the augmenter's training with resumption and bad input."""

import json

import numpy as np
import pytest
import torch

from regionclip.clip.class_embeddings import load_class_embeddings, read_names
from regionclip.data.region_features.index import FeatureFolder
from regionclip.methods.ralf import augmenter_training
from regionclip.methods.ralf.augmenter_training import AugmenterSettings, AugmenterTraining, RegionFilter, read_regions
from regionclip.modeling.build import build_model
from regionclip.modeling.retrieval_augmentation.negatives import NO_WORD, read_negative_words
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.methods.ralf.stores import write_concepts, write_regions, write_store
from tests.methods.ralf.tiny import config

CLASSES = "cat,dog,traffic light"
WORDS = [f"{color} {noun}" for color in ("red", "green", "old", "wet") for noun in ("boat", "tree", "lamp", "Dog")]


@pytest.fixture
def ralf(command):
    """Run `regionclip ralf` and return (exit code, what it printed)."""

    def call(*arguments):
        code, output, errors = command("ralf", *arguments)
        return code, output + errors

    return call


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join([*WORDS, "dog", "traffic_light", "red boat"]))
    return path


def test_sampled_words_are_no_class_names_and_written_as_published(ralf, detector_folder, words, tmp_path):
    given = ["--classes", CLASSES, "--words", words, "--model", detector_folder]
    code, output = ralf("sample-words", *given, "--drop", "0.5", "--output", tmp_path / "kept.json")
    assert code == 0, output
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert list(kept) == [str(i) for i in range(8)] and set(kept.values()) < set(WORDS)
    code, output = ralf("sample-words", *given, "--threshold", "0", "--output", tmp_path / "all.json")
    assert code == 0 and f"Done: {len(WORDS)} of {len(WORDS)} words" in output
    code, output = ralf("sample-words", *given, "--variance", "both", "--output", tmp_path / "none.json")
    assert code == 2 and "--variance: expected argsort or rank, got 'both'" in output
    assert not (tmp_path / "none.json").exists()


def test_a_store_has_the_nearest_and_farthest_words(ralf, detector_folder, words, tmp_path):
    given = ["--classes", CLASSES, "--words", words, "--model", detector_folder]
    path = tmp_path / "store.safetensors"
    code, output = ralf("build-store", *given, "--per-class", 4, "--hub-classes", 4, "--output", path)
    assert code == 0, output
    store = read_negative_words(path)
    assert store.names == ("cat", "dog", "traffic light") and store.text_weights
    unit = torch.nn.functional.normalize(store.words.float(), dim=1)
    for number, anchor in enumerate(store.anchors):
        cosines = unit @ anchor
        hard, easy = store.hard[number].long(), store.easy[number].long()
        assert len(set(hard.tolist())) == 4 and len(set(easy.tolist())) == 4
        assert float(cosines[hard].min()) >= float(cosines.topk(4).values.min()) - 1e-3
        assert float(cosines[easy].max()) <= float(cosines.topk(4, largest=False).values.max()) + 1e-3
    code, output = ralf("build-store", *given, "--per-class", 16, "--output", tmp_path / "hubs.safetensors")
    assert code == 2 and "hard negative words: expected some for each class, got none for cat, dog" in output
    assert "raise --hub-classes" in output and not (tmp_path / "hubs.safetensors").exists()


def test_stores_are_exported_and_imported(ralf, tmp_path):
    anchors = torch.nn.functional.normalize(deterministic_text_embeddings("anchors", 80, 32), dim=1)
    ours = write_store(tmp_path / "ours.safetensors", [f"c{i}" for i in range(80)], anchors.half().float())
    code, output = ralf("export-store", ours, tmp_path / "published.pkl")
    assert code == 0 and "80 classes" in output
    code, output = ralf("import-store", tmp_path / "published.pkl", tmp_path / "again.safetensors")
    assert code == 0, output
    first, again = read_negative_words(ours), read_negative_words(tmp_path / "again.safetensors")
    assert again.names[:2] == ("person", "bicycle") and torch.equal(first.anchors, again.anchors)
    for side in ("hard", "easy"):
        mine, theirs = getattr(first, side), getattr(again, side)
        valid = mine != NO_WORD
        assert torch.equal(valid, theirs != NO_WORD)
        assert torch.equal(first.words[mine[valid].long()], again.words[theirs[valid].long()])


def published(**changes):
    """Return the content of a published file of three classes."""
    arrays = {"feat_in": np.eye(3, 4), "feat_out_sim": np.ones((3, 2, 4)), "feat_out_dis": np.ones((3, 1, 4))}
    counts = {"pad_out_sim": np.array([2, 1, 0]), "pad_out_dis": np.ones(3, dtype=np.int64)}
    return {**arrays, **counts, **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ({"feat_in": np.zeros((2, 4))}, "expected a published file with feat_in, feat_out_sim"),
        (published(pad_out_sim=np.array([2.0, 1.0, 0.0])), "pad_out_sim of float64"),
        (published(pad_out_dis=np.array([1, 1, 9])), "pad_out_dis of int64 from 1 to 9"),
        (published(pad_out_dis=np.array([1, 1, -1])), "pad_out_dis of int64 from -1 to 1"),
        (published(feat_out_sim=np.ones((3, 2, 5))), "feat_out_sim [3, 2, 5]"),
        (published(feat_in=np.ones(3)), "feat_in [3]"),
        (published(feat_in=np.full((3, 4), np.nan)), "NaN or infinity in feat_in"),
        (print, "unreadable"),
        ("no archive at all", "unreadable"),
    ],
)
def test_other_files_are_no_published_store(ralf, tmp_path, content, message):
    path = tmp_path / "neg_feature.pkl"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        torch.save(content, path)
    code, output = ralf("import-store", "--classes", "a,b,c", path, tmp_path / "store.safetensors")
    assert code == 2 and message in output
    assert not (tmp_path / "store.safetensors").exists()


def test_a_published_store_of_unknown_classes_needs_their_names(ralf, tmp_path):
    torch.save(published(), tmp_path / "three.pkl")
    code, output = ralf("import-store", tmp_path / "three.pkl", tmp_path / "three.safetensors")
    assert code == 2 and "expected 80 or 1203 classes, got 3 classes" in output
    named = ["--classes", "a,b,c", tmp_path / "three.pkl", tmp_path / "three.safetensors"]
    assert ralf("import-store", *named)[0] == 0
    store = read_negative_words(tmp_path / "three.safetensors")
    assert len(store.words) == 1 and store.hard.tolist() == [[0, 0], [0, NO_WORD], [NO_WORD, NO_WORD]]


def test_concepts_are_the_nouns_of_descriptions(ralf, detector_folder, tmp_path):
    (tmp_path / "answers.json").write_text(
        json.dumps({"cat": ["A cat has a bushy tail.", "Two ears."], "dog": "Ears."})
    )
    given = ["--model", detector_folder, "--output", tmp_path / "concepts.safetensors"]
    code, output = ralf("build-concepts", "--descriptions", tmp_path / "answers.json", *given)
    assert code == 0, output
    names = read_names(tmp_path / "concepts.safetensors")
    assert {"cat", "tail", "ear"} <= set(names) and len(names) == len(set(names))
    code, output = ralf("build-concepts", "--words", "cat,dog", *given)
    assert code == 0 and read_names(tmp_path / "concepts.safetensors") == ["cat", "dog"]
    code, output = ralf("build-concepts", *given)
    assert code == 2 and "--descriptions and --words: expected one of them, got neither" in output
    (tmp_path / "empty.txt").write_text("\n")
    code, output = ralf("build-concepts", "--descriptions", tmp_path / "empty.txt", *given)
    assert code == 2 and "expected at least one description, got none" in output


def test_questions_are_written_for_a_language_model(ralf, tmp_path):
    code, output = ralf("prompts", "--words", "cat,traffic light", "--output", tmp_path / "questions.txt")
    assert code == 0, output
    lines = (tmp_path / "questions.txt").read_text().splitlines()
    assert len(lines) == 2 and "traffic light" in lines[1]


def test_published_concepts_are_imported(ralf, tmp_path):
    features = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    torch.save({"all_noun_chunks": {"text_features": torch.from_numpy(features)}}, tmp_path / "chunks.pkl")
    code, output = ralf("import-concepts", tmp_path / "chunks.pkl", tmp_path / "concepts.pth")
    assert code == 0 and "7 concepts" in output
    assert torch.equal(load_class_embeddings(tmp_path / "concepts.pth"), torch.from_numpy(features))
    torch.save({"all_noun_chunks": {"text_features": features}}, tmp_path / "arrays.pkl")
    assert ralf("import-concepts", tmp_path / "arrays.pkl", tmp_path / "concepts.pth")[0] == 0
    for content in ({"other": 1}, {"all_noun_chunks": {"text_features": torch.ones(7)}}):
        torch.save(content, tmp_path / "other.pkl")
        code, output = ralf("import-concepts", tmp_path / "other.pkl", tmp_path / "none.pth")
        assert code == 2 and "all_noun_chunks" in output and not (tmp_path / "none.pth").exists()
    code, output = ralf("import-concepts", tmp_path / "chunks.pkl", tmp_path / "none.safetensors")
    assert code == 2 and "expected a name that ends in .pth" in output


@pytest.fixture
def regions(tmp_path):
    """Return a folder of region features of twelve images, the first of which are too narrow."""
    boxes = ((0, 0, 9, 20), *((0, 0, 20, 20),) * 5)
    return write_regions(tmp_path / "regions", [f"{i}.jpg" for i in range(12)], boxes)


def test_the_first_large_objects_of_an_image_are_trained_on(regions):
    found = read_regions(FeatureFolder(regions), RegionFilter(per_image=3))
    assert found.counts == (3,) * 12
    expected = deterministic_text_embeddings("regions 1", 6, 32)[[1, 3, 4]].half()
    assert torch.equal(found.embeddings[3:6], expected)
    unit = found.of_images(torch.tensor([1]))
    torch.testing.assert_close(unit, torch.nn.functional.normalize(expected.float(), dim=1))


def augmenter_arguments(regions, tmp_path, embedding_file):
    concepts = write_concepts(tmp_path / "concepts.safetensors")
    classes = embedding_file("labels", 9, 32)
    small = ["--topk-concept", 5, "--batch-size", 4, "--epochs", 2, "--held-out", 0.2]
    return ["--regions", regions, "--concepts", concepts, "--classes", classes, *small]


def test_the_augmenter_is_trained_and_measured(ralf, regions, tmp_path, embedding_file):
    given = augmenter_arguments(regions, tmp_path, embedding_file)
    code, output = ralf("train-augmenter", *given, "--output", tmp_path / "out")
    assert code == 0, output
    assert f"Done: 6 steps on 48 regions, weights in {tmp_path / 'out' / 'augmenter.pth'}" in output
    state = torch.load(tmp_path / "out" / "augmenter.pth", weights_only=True)
    assert len(state) == 113 and state["pos_embedding"].shape == (5, 32)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["regions"] == 12 and 0 <= metrics["label_kept"] <= 1
    again, output = ralf("train-augmenter", *given, "--output", tmp_path / "out")
    assert again == 0 and "6 steps" in output
    code, output = ralf("train-augmenter", *given, "--lr", 0.2, "--output", tmp_path / "out")
    assert code == 2 and "the training of these inputs and settings, got one of others" in output


def test_an_interrupted_training_ends_with_the_same_bits(regions, tmp_path, monkeypatch):
    monkeypatch.setattr(augmenter_training, "SECONDS_BETWEEN_STATES", 0.0)
    found = read_regions(FeatureFolder(regions), RegionFilter())
    concepts, classes = (deterministic_text_embeddings(name, count, 32) for name, count in (("c", 20), ("k", 9)))
    settings = AugmenterSettings(epochs=3, images_per_batch=4, concepts=5)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = AugmenterTraining(found, concepts, classes, settings, tmp_path / "whole")
    whole.run()
    first = AugmenterTraining(found, concepts, classes, settings, tmp_path / "parts")
    step = first._train_step

    def stop_at_four():
        if first.step == 4:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(first, "_train_step", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert not (tmp_path / "parts" / "augmenter.pth").exists()
    second = AugmenterTraining(found, concepts, classes, settings, tmp_path / "parts")
    assert second.step == 4
    second.run()
    states = [torch.load(tmp_path / name / "augmenter.pth", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["class_embedding"], first.model.state_dict()["class_embedding"])


def test_bad_input_of_the_augmenter_is_one_clear_error(ralf, regions, tmp_path, embedding_file):
    given = augmenter_arguments(regions, tmp_path, embedding_file)
    wide = write_concepts(tmp_path / "wide.safetensors", dim=64)
    changes = {
        ("--concepts", wide): "expected a float tensor [K, 32]",
        ("--concepts", write_concepts(tmp_path / "few.safetensors", count=3)): "expected at least 5 concepts, got 3",
        ("--min-objectness", 0.95): "expected regions with an objectness above 0.95",
        ("--regions", tmp_path): "an index of features",
    }
    for (option, value), message in changes.items():
        changed = [value if before == option else part for before, part in zip([None, *given], given, strict=False)]
        changed += [option, value] if option not in given else []
        code, output = ralf("train-augmenter", *changed, "--output", tmp_path / "bad")
        assert code == 2 and message in output, output
        assert not (tmp_path / "bad").exists()


def test_a_checkpoint_is_exported_under_the_published_keys(ralf, tmp_path):
    model = build_model(config())
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    code, output = ralf("export", tmp_path / "model_final.pth", tmp_path / "epoch_20.pth")
    assert code == 0, output
    state = torch.load(tmp_path / "epoch_20.pth", weights_only=True)["state_dict"]
    assert torch.equal(state["roi_head.projection.weight"], model.predictor.projection.weight)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    code, output = ralf("export", tmp_path / "other.pth", tmp_path / "none.pth")
    assert code == 2 and "expected a detector of DetPro, got keys such as other.weight" in output
    assert not (tmp_path / "none.pth").exists()


def test_a_training_that_diverges_writes_nothing(ralf, regions, tmp_path, embedding_file):
    given = augmenter_arguments(regions, tmp_path, embedding_file)
    code, output = ralf("train-augmenter", *given, "--lr", 1e30, "--output", tmp_path / "out")
    assert code == 2 and "loss of the augmenter: expected a finite number, got nan" in output
    assert not (tmp_path / "out" / "augmenter.pth").exists()


def test_a_damaged_state_of_a_training_is_one_error(ralf, regions, tmp_path, embedding_file):
    given = augmenter_arguments(regions, tmp_path, embedding_file)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.pth").write_bytes(b"PK half a file")
    code, output = ralf("train-augmenter", *given, "--output", tmp_path / "out")
    assert code == 2 and "training.pth: expected the state of a training, got unreadable" in output


def test_one_class_has_no_variance(ralf, detector_folder, words, tmp_path):
    given = ["--classes", "cat", "--words", words, "--model", detector_folder, "--output", tmp_path / "kept.json"]
    code, output = ralf("sample-words", *given)
    assert code == 2 and "--classes: expected at least two classes" in output
