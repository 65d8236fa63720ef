"""Detections as a structure: validated, indexed, iterated, filtered, merged."""

import dataclasses

import numpy as np
import pytest

from regionclip.detections import Detection, Detections
from regionclip.errors import UserError

WORDS = ("cat", "dog", "kite")


def make(scores, classes, words=WORDS, ranked=2, size=(40, 60), embeddings=None):
    count = len(scores)
    return Detections(
        boxes=np.arange(4 * count, dtype=np.float32).reshape(count, 4),
        scores=np.array(scores, np.float32),
        class_ids=np.array(classes, np.int64),
        vocabulary=words,
        image_size=size,
        top_class_ids=np.tile(np.arange(ranked), (count, 1)).astype(np.int64).reshape(count, ranked),
        top_scores=np.full((count, ranked), 0.25, np.float32),
        embeddings=embeddings,
    )


@pytest.fixture
def three():
    return make([0.9, 0.5, 0.25], [1, 0, 1], embeddings=np.eye(3, dtype=np.float32))


def test_rows_are_detections(three):
    rows = list(three)
    assert len(rows) == len(three) == 3
    assert [(row.name, row.score) for row in rows] == [("dog", np.float32(0.9)), ("cat", 0.5), ("dog", 0.25)]
    assert rows[1].name == three[1].name == "cat"
    assert isinstance(three[-1], Detection)
    assert three[-1].score == 0.25
    assert three[np.int64(0)].box.tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        three[3]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, None), [1, 2]),
        ([True, False, True], [0, 2]),
        (np.array([False, False, False]), []),
        ([2, 0], [2, 0]),
        ([], []),
        (slice(None, None, -1), [2, 1, 0]),
    ],
)
def test_a_selection_keeps_all_fields(three, rows, expected):
    chosen = three[rows]
    for name in ("boxes", "scores", "class_ids", "top_class_ids", "top_scores", "embeddings"):
        assert np.array_equal(getattr(chosen, name), getattr(three, name)[np.array(expected, int)]), name
    assert (chosen.vocabulary, chosen.image_size) == (three.vocabulary, three.image_size)


def test_filtered_by_score_and_class(three):
    assert three[three.scores > 0.4].names == ["dog", "cat"]
    assert three.of("dog").scores.tolist() == [np.float32(0.9), 0.25]
    assert len(three.of("kite")) == 0
    assert three.of("dog", "cat").names == three.names
    with pytest.raises(UserError, match="expected one of the 3 class names, got 'Dog'"):
        three.of("Dog")


def test_merged_detections_keep_what_fits_together(three):
    width = 8 if three.embeddings is None else three.embeddings.shape[1]
    first = dataclasses.replace(three, embeddings=np.ones((len(three), width), np.float32), warnings=("a", "b"))
    second = dataclasses.replace(three, embeddings=np.ones((len(three), width + 1), np.float32), warnings=("b", "c"))
    merged = Detections.merge([first, second])
    assert merged.embeddings is None and merged.warnings == ("a", "b", "c")
    assert Detections.merge([first, first]).embeddings.shape == (2 * len(three), width)


def test_merged_by_score_over_both_vocabularies(three):
    other = make([0.75, 0.1], [1, 0], words=("bird", "cat"), ranked=1)
    merged = Detections.merge([three, other])
    assert merged.names == ["dog", "cat", "cat", "dog", "bird"]
    assert merged.vocabulary == ("cat", "dog", "kite", "bird")
    assert merged.scores.tolist() == sorted(merged.scores.tolist(), reverse=True)
    assert merged[1].box.tolist() == other[0].box.tolist()
    assert merged.top_class_ids.shape == (5, 1)
    assert [merged.vocabulary[i] for i in merged.top_class_ids[:, 0]] == ["cat", "bird", "cat", "cat", "bird"]
    assert merged.embeddings is None
    assert np.array_equal(Detections.merge([three, three[:0]]).embeddings, three.embeddings)


@pytest.mark.parametrize("parts", [[], [make([0.5], [0]), make([0.5], [0], size=(60, 40))]])
def test_merging_needs_one_image(parts):
    with pytest.raises(UserError, match="expected one image size"):
        Detections.merge(parts)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("boxes", np.zeros((3, 5)), r"boxes: expected \[N, 4\], N = 3, got \[3, 5\]"),
        ("boxes", np.zeros(4), r"boxes: expected \[N, 4\], got \[4\]"),
        ("scores", np.zeros(2), r"scores: expected \[N\], N = 3, got \[2\]"),
        ("class_ids", np.array([0, 1, 3]), "class_ids: expected indices into 3 class names, got 0 to 3"),
        ("class_ids", np.array([0, 1, -1]), "got -1 to 1"),
        ("top_scores", np.zeros((3, 1)), r"top_scores: expected \[N, k\], N = 3, k = 2, got \[3, 1\]"),
        ("top_class_ids", np.zeros(3, int), r"top_class_ids: expected \[N, k\]"),
        ("embeddings", np.zeros((2, 8)), r"embeddings: expected \[N, D\], N = 3.*got \[2, 8\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(three, field, value, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(three, **{field: value})
