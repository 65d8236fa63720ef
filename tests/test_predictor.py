"""The Python interface as a new user meets it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from safetensors.torch import load_file

from regionclip import RegionCLIP, VocabularyOptions
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.images import UnreadableImageError
from regionclip.data.test_loader import TestMapper
from regionclip.detections import Detections
from regionclip.drawing import color_of, draw_detections, place_labels
from regionclip.errors import UserError
from tests.helpers.detectors import LVIS_CUSTOM
from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
WORDS = ["cat", "dog", "traffic cone", "car"]


@pytest.fixture
def detector(detector_folder):
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary(WORDS)
    return detector


@pytest.mark.parametrize("per_class", [True, False])
def test_detections_are_those_of_an_evaluation(per_class, detector_folder):
    overrides = ["MODEL.CLIP.VIS", "False", "MODEL.ROI_HEADS.NMS_ACROSS_CLASSES", str(not per_class)]
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu", overrides=overrides)
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary(WORDS)
    image = TestMapper(128, 256, "RGB", keep_annotations=False)({"file_name": str(PHOTOS[0])})
    predictor = detector.model.roi_heads.box_predictor
    rows = torch.nn.Linear(32, len(WORDS), bias=False)
    rows.weight.data = detector.vocabulary.embeddings
    predictor.test_cls_score = rows
    with torch.no_grad():
        (expected,) = detector.model([image])
    predictor.test_cls_score = None
    expected = expected["instances"]
    found = detector.predict(per_class=per_class)
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor.numpy(), rtol=1e-5, atol=1e-3)
    odds = expected.scores.numpy() ** 2  # of the published score, which is sqrt(probability * logit)
    np.testing.assert_allclose(found.scores, odds / (1 + odds), rtol=1e-5)
    assert found.class_ids.tolist() == expected.pred_classes.tolist()
    assert len(detector.predict(per_class=True)) > len(detector.predict(per_class=False))


def test_across_classes_an_object_keeps_its_best_word(detector):
    one, many = detector.predict(threshold=0.0), detector.predict(threshold=0.0, per_class=True)
    assert len({tuple(box) for box in one.boxes.tolist()}) == len(one)
    assert len({tuple(box) for box in many.boxes.tolist()}) < len(many)
    assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)


def test_threshold_topk_words_and_embeddings(detector):
    every = detector.predict(threshold=0.0)
    assert np.array_equal(detector.predict(threshold=0.5).scores, every.scores[every.scores >= 0.5])
    assert len(detector.predict(threshold=0.0, topk=3)) == 3
    assert every.embeddings is None
    assert every.top_class_ids.shape == (len(every), 0)
    found = detector.predict(threshold=0.0, words_per_box=2, embeddings=True)
    assert found.embeddings.shape == (len(found), 32)
    assert [found.top_words(row)[0][0] for row in range(len(found))] == found.names
    assert all(len(found.top_words(row)) == 2 for row in range(len(found)))


def test_numbers_of_numpy_and_torch_are_numbers(detector):
    plain = detector.predict(threshold=0.0, topk=2, words_per_box=1)
    other = detector.predict(threshold=np.float32(0), topk=np.int64(2), words_per_box=torch.tensor(1))
    assert len(plain) == 2
    np.testing.assert_array_equal(plain.boxes, other.boxes)
    ids = np.arange(len(plain.vocabulary)) + 7
    results = json.loads(json.dumps(plain.to_coco(np.int64(3), ids)))
    assert {(result["image_id"], result["category_id"] - 7) for result in results} == {
        (3, int(class_id)) for class_id in plain.class_ids
    }


def test_given_boxes_keep_their_order_and_get_a_word_each(detector):
    boxes = [[30, 20, 120, 150], [0, 0, 60, 60], [30, 20, 120, 150], [10, 10, 9999, 40]]
    found = detector.predict(boxes, embeddings=True, words_per_box=4)
    width = found.image_size[1]
    np.testing.assert_allclose(found.boxes, [*boxes[:3], [10, 10, width, 40]], rtol=1e-5)
    assert np.array_equal(found.embeddings[0], found.embeddings[2])
    total = found.top_scores.sum(axis=1)
    assert ((total > 0) & (total <= 1 + 1e-6)).all()
    assert len(detector.predict([])) == 0
    assert len(detector.predict(torch.empty(0, 4))) == 0


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, float("nan"), 5]], "boxes, row 0: expected finite numbers"),
        ([[1, 2, 3]], r"boxes: expected numbers [N, 4], got [1, 3]"),
        ([1, 2, 3, 4], r"boxes: expected numbers [N, 4], got [4]"),
        ([[0, 0, 10, 10], [50, 60, 20, 30]], "row 1: expected x1 < x2 and y1 < y2, got [50.0, 60.0, 20.0, 30.0]"),
        ([[50, 60, 20, 30]], "if these are x, y, width, height, add x and y to the last two"),
        ([[5000, 0, 6000, 50]], "row 0: expected boxes in the image of 400 x 300 pixels"),
        ([[-50, -50, -5, -5]], "row 0: expected boxes in the image"),
        ([[0.1, 0.1, 0.5, 0.9]], "got numbers up to 0.9, as of fractions"),
        ([[-0.1, 0.1, 0.5, 0.5]], "as of fractions"),
        ([["a", "b", "c", "d"]], r"boxes: expected numbers [N, 4]"),
    ],
)
def test_bad_boxes_are_errors(boxes, message, detector):
    detector.set_image(np.zeros((300, 400, 3), np.uint8))
    with pytest.raises(UserError) as caught:
        detector.predict(boxes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": 0}, "topk: expected a whole number above 0, got 0"),
        ({"topk": -1}, "topk: expected a whole number above 0"),
        ({"topk": 2.5}, "topk: expected a whole number above 0"),
        ({"topk": "5"}, "topk: expected a whole number above 0, got '5'"),
        ({"threshold": "0.5"}, "threshold: expected a number, got '0.5'"),
        ({"topk": 3, "boxes": [[0, 0, 9, 9]]}, "topk: expected none with given boxes"),
        ({"threshold": float("nan")}, "threshold: expected a number, got nan"),
        ({"words_per_box": -1}, "words_per_box: expected 0 to 4"),
    ],
)
def test_bad_limits_are_errors(arguments, message, detector):
    with pytest.raises(UserError) as caught:
        detector.predict(**arguments)
    assert message in str(caught.value)


def test_an_image_is_what_it_was_when_it_was_set(detector):
    pixels = np.array(Image.open(PHOTOS[0]).convert("RGB"))
    kept = pixels.copy()
    detector.set_image(pixels)
    pixels[:] = 0
    assert np.array_equal(detector.predict().image, kept)


def test_all_kinds_of_images_are_the_same(detector):
    pixels = np.array(Image.open(PHOTOS[0]).convert("RGB"))
    boxes = [[10, 10, 100, 100]]
    expected = detector.predict(boxes, embeddings=True).embeddings
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = (str(PHOTOS[0]), Image.fromarray(pixels), pixels, tensor, pixels / 255, tensor / 255)
    for given in (*kinds, detector.prepare_image(pixels)):
        detector.set_image(given)
        assert np.array_equal(detector.predict(boxes, embeddings=True).embeddings, expected)
    detector.set_image(pixels[:, :, 0])
    gray = detector.predict(boxes, embeddings=True).embeddings
    detector.set_image(np.repeat(pixels[:, :, :1], 3, axis=2))
    assert np.array_equal(detector.predict(boxes, embeddings=True).embeddings, gray)


def test_a_prepared_image_is_remembered_and_fits_its_detector_alone(detector):
    pixels = np.array(Image.open(PHOTOS[1]).convert("RGB"))
    prepared = detector.prepare_image(pixels)
    assert prepared is not detector.prepare_image(pixels)
    detector.set_image(prepared)
    assert detector.prepare_image(pixels) is prepared
    prepared.model = None
    with pytest.raises(UserError, match="expected one that this detector prepared"):
        detector.set_image(prepared)
    detector.forget_images()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), "expected an array [H, W, 3] or a tensor [3, H, W], got [3, 20, 30]"),
        (np.zeros((20, 30, 3), np.int32), "expected uint8, or floats in [0, 1], got int32"),
        (np.full((20, 30, 3), 200.0), "expected values in [0, 1], got 200 to 200"),
        (np.zeros((0, 30, 3), np.uint8), "image: expected an array"),
        (Image.fromarray(np.zeros((9, 9), np.float32)), "image: expected one that can be decoded"),
        (None, "image: expected an array"),
    ],
)
def test_bad_images_are_errors(image, message, detector):
    with pytest.raises(UserError) as caught:
        detector.set_image(image)
    assert message in str(caught.value)


def test_a_file_that_is_no_image(detector, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        detector.set_image(tmp_path / "a.jpg")


def test_no_image_is_encoded_twice_and_new_words_encode_no_region_again(detector, monkeypatch):
    maps, boxes = [], []
    model, heads = detector.model, detector.model.roi_heads
    features, encoder = model.image_features, heads.encoder_of_image

    def encoder_of_image(*arguments):
        encode = encoder(*arguments)
        return lambda chunk: boxes.append(len(chunk)) or encode(chunk)

    monkeypatch.setattr(model, "image_features", lambda images: maps.append(len(images)) or features(images))
    monkeypatch.setattr(heads, "encoder_of_image", encoder_of_image)
    detector.predict()
    assert sum(boxes) == detector.encoded_images[-1].encoding.regions.encoded > 0
    detector.set_vocabulary(["bird", "person"])
    assert set(detector.predict(threshold=0.0).names) <= {"bird", "person"}
    assert (
        sum(boxes)
        == detector.encoded_images[-1].encoding.regions.encoded
        <= len(detector.encoded_images[-1].encoding.regions)
    )
    detector.set_image(PHOTOS[1])
    detector.predict()
    seen = list(boxes)
    detector.set_image(np.array(Image.open(PHOTOS[0]).convert("RGB")))
    detector.predict()
    assert (maps, boxes) == ([1, 1], seen)


def test_background_words_share_the_score_and_are_never_reported(detector):
    boxes = [[10, 10, 200, 200], [50, 0, 120, 90]]
    detector.set_vocabulary(["cat", "dog"], background=None)
    alone = detector.predict(boxes, words_per_box=2).top_scores.sum(axis=1)
    detector.set_vocabulary(["cat", "dog"], background=["Dog", "bird", "person", "sky"])
    shared = detector.predict(boxes, words_per_box=2)
    assert (shared.top_scores.sum(axis=1) < alone).all()
    assert set(shared.names) <= {"cat", "dog"}
    every = Vocabulary.from_names(["cat", "dog", "bird", "person", "sky"], detector.embedder)
    detector.set_vocabulary(every, background=None)
    probabilities = detector.predict(boxes, words_per_box=5)
    expected = [dict(probabilities.top_words(row))["dog"] for row in range(2)]
    found = [dict(shared.top_words(row))["dog"] for row in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_own_words_of_a_detector_are_its_background(detector_folder, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for path in detector_folder.iterdir():
        (folder / path.name).symlink_to(path)
    plain = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    Vocabulary.from_names(["bird", "Cat", "person"], plain.embedder).save(folder / "vocabulary.safetensors")
    detector = RegionCLIP.from_pretrained(folder, device="cpu")
    assert detector.vocabulary.names == ("bird", "Cat", "person")
    detector.set_image(PHOTOS[0])
    assert set(detector.predict(threshold=0.0).names) <= {"bird", "Cat", "person"}
    detector.set_vocabulary(["cat"])
    plain.set_vocabulary(["cat"], background=["bird", "person"])
    plain.set_image(PHOTOS[0])
    assert np.array_equal(detector.predict([[0, 0, 90, 90]]).scores, plain.predict([[0, 0, 90, 90]]).scores)


def test_a_detector_is_known_again(detector_folder):
    one, other = (RegionCLIP.from_pretrained(detector_folder, device="cpu") for _ in range(2))
    # Class rows are in no file of this folder, so that they are random.
    assert not torch.equal(*(d.model.roi_heads.box_predictor.cls_score.weight for d in (one, other)))
    assert one.fingerprint == other.fingerprint
    with torch.no_grad():
        other.model.backbone.conv1.weight[0] += 1
    del other.fingerprint
    assert one.fingerprint != other.fingerprint


def test_what_is_missing_is_said(detector_folder):
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    with pytest.raises(UserError, match="call set_image"):
        detector.predict()
    detector.set_image(PHOTOS[0])
    with pytest.raises(UserError, match="call set_vocabulary"):
        detector.predict()
    with pytest.raises(UserError, match="expected embeddings of tiny_clip, width 32, got RN50, width 1024"):
        detector.set_vocabulary(Vocabulary(("a",), torch.rand(1, 1024), torch.arange(1), model="RN50"))
    detector.set_vocabulary(["cat"])
    with pytest.raises(UserError, match="words_per_box: expected 0 to 1, the words, got 2"):
        detector.predict(words_per_box=2)


def test_a_vocabulary_made_with_other_weights_is_refused(detector_folder):
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    strange = Vocabulary(("a",), torch.rand(1, 32), torch.arange(1), model="tiny_clip", text_weights="0" * 16)
    with pytest.raises(UserError, match="expected embeddings of text weights"):
        detector.set_vocabulary(strange)


def test_words_in_all_scripts_are_found_and_drawn(detector):
    words = ["قطة", "חתול", "猫", "кошка", "🐈 cat", "e\u0301"]
    vocabulary = detector.set_vocabulary(words)
    found = detector.predict(threshold=0.0, words_per_box=3)
    assert vocabulary.names == tuple(words)
    assert found.draw().size == found.image_size[::-1]


def test_fifty_thousand_words(detector):
    rows = torch.randn(50_000, 32, generator=torch.Generator().manual_seed(0))
    names = tuple(f"word {i}" for i in range(50_000))
    detector.set_vocabulary(Vocabulary(names, rows, torch.arange(50_000)), background=None)
    found = detector.predict(threshold=0.0, topk=5)
    assert len(found) == 5
    detector.set_vocabulary(names[:3000], options=VocabularyOptions(templates="single"))
    assert len(detector.vocabulary) == 3000


def test_results_in_other_formats(detector):
    found = detector.predict(threshold=0.0, topk=5)
    coco = found.to_coco(image_id=7, category_ids=[10, 20, 30, 40])
    for result, box, class_id, score in zip(coco, found.boxes, found.class_ids, found.scores, strict=True):
        x, y, width, height = result["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], box, rtol=1e-6)
        assert (result["image_id"], result["category_id"]) == (7, 10 * (class_id + 1))
        assert result["score"] == pytest.approx(score)
    assert {result["category_id"] for result in found.to_coco()} <= {1, 2, 3, 4}
    instances = found.to_instances()
    assert instances.image_size == found.image_size
    assert np.array_equal(instances.pred_boxes.tensor.numpy(), found.boxes)
    assert np.array_equal(instances.pred_classes.numpy(), found.class_ids)


def test_results_for_supervision(detector):
    pytest.importorskip("supervision")
    found = detector.predict(threshold=0.0, topk=5)
    other = found.to_supervision()
    assert np.array_equal(other.xyxy, found.boxes)
    assert list(other["class_name"]) == found.names


def test_images_are_drawn_on_what_was_detected(detector):
    found = detector.predict(threshold=0.0)
    drawn = found.draw()
    assert drawn.size == found.image_size[::-1]
    assert not np.array_equal(np.array(drawn), found.image)
    assert np.array_equal(np.array(detector.predict(threshold=1.1).draw()), found.image)
    with pytest.raises(UserError, match="image to draw on: expected"):
        found.draw(np.zeros((5, 5, 3), np.uint8))


def test_a_box_is_drawn_where_it_is():
    one = {"boxes": np.array([[60.4, 70.2, 140.0, 160.0]], np.float32), "scores": np.array([0.9], np.float32)}
    best = {"class_ids": np.array([0]), "top_class_ids": np.array([[0]]), "top_scores": np.array([[0.9]], np.float32)}
    found = Detections(**one, **best, vocabulary=("cat",), image_size=(200, 300))
    drawn = np.array(draw_detections(np.zeros((200, 300, 3), np.uint8), found))
    color = ImageColor.getrgb(color_of("cat"))
    for x, y in ((60, 100), (140, 100), (100, 160), (60, 70), (140, 160)):
        assert tuple(drawn[y, x]) == color, (x, y)
    assert not drawn[90:150, 80:130].any() and not drawn[:40].any() and not drawn[:, 200:].any()


def test_a_config_that_is_not_used_is_said(detector_folder, caplog):
    RegionCLIP.from_pretrained(detector_folder, config="other.yaml")
    assert "config other.yaml is not used" in caplog.text
    with pytest.raises(UserError, match="device: expected cpu, cuda or cuda:N, got 'meta'"):
        RegionCLIP.from_pretrained(detector_folder, device="meta")


def test_any_image_that_can_be_set_can_be_drawn_on(detector):
    detector.set_image(PHOTOS[0])
    found = detector.predict(threshold=0.0, topk=2)
    photo = Image.open(PHOTOS[0]).convert("RGB")
    drawn = np.asarray(found.draw())
    for image in (photo, photo.convert("RGBA"), np.asarray(photo)):
        np.testing.assert_array_equal(np.asarray(found.draw(image)), drawn)
    gray = np.asarray(found.draw(photo.convert("L")))
    assert gray.shape == drawn.shape


def test_labels_never_cover_each_other_and_stay_inside():
    generator = np.random.default_rng(0)
    for _ in range(30):
        corners = generator.integers(-20, 400, (60, 2))
        boxes = np.concatenate([corners, corners + generator.integers(1, 200, (60, 2))], axis=1).tolist()
        extents = [(int(width), 17) for width in generator.integers(20, 130, 60)]
        places = [place for place in place_labels(boxes, extents, (400, 300)) if place]
        assert len(places) > 20
        table = np.array(places)
        assert (table[:, :2] >= 0).all()
        assert (table[:, 2:] < [400, 300]).all()
        for i, (left, top, right, bottom) in enumerate(places):
            others = np.delete(table, i, axis=0)
            apart = (others[:, 0] > right) | (others[:, 2] < left) | (others[:, 1] > bottom) | (others[:, 3] < top)
            assert apart.all()


def test_a_word_has_its_color_everywhere():
    assert color_of("cat") == color_of("Cat")
    assert len({color_of(word) for word in ("cat", "dog", "car", "bird", "person")}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name_or_path": "no_such_model"},
            "detector no_such_model: expected one of emoji, regionclip_pretrained-cc_rn50",
        ),
        ({"name_or_path": "."}, "expected config.yaml and model.safetensors or model_final.pth"),
    ],
)
def test_what_is_no_detector_is_an_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        RegionCLIP.from_pretrained(**arguments)
    assert message in str(caught.value)


def test_files_that_a_run_started_from_may_be_gone_and_a_named_rpn_is_read(detector_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(detector_folder, folder)
    config = (folder / "config.yaml").read_text()
    gone = config.replace("  WEIGHTS: ''", "  WEIGHTS: gone.pth")
    gone = gone.replace("BB_RPN_WEIGHTS: null", "BB_RPN_WEIGHTS: gone_too.pth")
    assert "gone.pth" in gone
    assert "gone_too.pth" in gone
    (folder / "config.yaml").write_text(gone)
    RegionCLIP.from_pretrained(folder, device="cpu")
    state = load_file(folder / "model.safetensors")
    rpn = {key.removeprefix("offline_"): value for key, value in state.items() if key.startswith("offline_")}
    torch.save({"model": rpn}, tmp_path / "rpn.pth")
    rest = {key: value for key, value in state.items() if not key.startswith("offline_")}
    torch.save({"model": rest}, tmp_path / "weights.pth")
    named = {"config": str(detector_folder / "config.yaml"), "device": "cpu"}
    with pytest.raises(UserError, match="weights of offline_backbone"):
        RegionCLIP.from_pretrained(tmp_path / "weights.pth", **named)
    overrides = ["MODEL.CLIP.BB_RPN_WEIGHTS", str(tmp_path / "rpn.pth")]
    detector = RegionCLIP.from_pretrained(tmp_path / "weights.pth", overrides=overrides, **named)
    read = detector.model.offline_proposal_generator.rpn_head.conv.weight
    assert torch.equal(read, state["offline_proposal_generator.rpn_head.conv.weight"])


def test_a_file_of_weights_needs_its_config(tiny):
    weights = tiny["overrides"]["MODEL.WEIGHTS"]
    with pytest.raises(UserError, match="expected a config with the file of weights"):
        RegionCLIP.from_pretrained(weights)
    overrides = [part for key, value in tiny["overrides"].items() for part in (key, value)]
    detector = RegionCLIP.from_pretrained(weights, config=LVIS_CUSTOM, overrides=overrides, device="cpu")
    with pytest.raises(UserError, match="expected a text encoder, to embed class names, got none"):
        detector.set_vocabulary(["cat"])
    with pytest.raises(UserError, match="classifier of text embeddings"):
        RegionCLIP.from_pretrained(
            weights,
            config=LVIS_CUSTOM,
            overrides=[*overrides, "MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER", "False", "MODEL.CLIP.NO_BOX_DELTA", "True"],
            device="cpu",
        )
