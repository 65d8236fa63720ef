"""CORA as a detector: class names condition the boxes, novel ones can be preferred, bad input is refused."""

import logging

import numpy as np
import pytest
import torch

from regionclip import RegionCLIP
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.cora import fill
from tests.helpers.detectors import flat
from tests.methods.cora.tiny import CONFIG, OVERRIDES


def config(**overrides):
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(CONFIG, flat(OVERRIDES | {"DATASETS.TEST": "()"} | changes))


def build(**overrides):
    return fill(build_model(config(**overrides))).eval()


def image(height=96, width=128, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def classifier(*names, seed="words"):
    rows = deterministic_text_embeddings(seed, len(names), 32)
    return BackgroundClassifier(Vocabulary(names, rows, torch.arange(len(names)), model="tiny_clip"), None, "cpu")


def test_new_names_run_the_decoder_and_not_the_backbone(monkeypatch):
    model = build()
    (encoding,) = model.encode_images([image()])
    first = model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))
    calls = []
    decode = model.transformer.decoder.forward
    monkeypatch.setattr(model.transformer.decoder, "forward", lambda *args: calls.append("decoder") or decode(*args))
    for part in (model.backbone.conv1, model.transformer.encoder.layers[0]):
        part.register_forward_hook(lambda *args: calls.append("image"))
    second = model.detect(encoding, classifier("kite", "boat", seed="others"), Selection(threshold=0.0))
    assert calls == ["decoder"]
    assert not torch.equal(first.pred_boxes.tensor[:5], second.pred_boxes.tensor[:5])


def test_a_batch_gives_what_its_images_give_alone():
    model, inputs = build(), [image(96, 128), image(128, 96, seed=1)]
    known = classifier("cat", "dog", "kite")
    for encoding, item in zip(model.encode_images(inputs), inputs, strict=True):
        (alone,) = model.encode_images([item])
        assert encoding.image.image_sizes == alone.image.image_sizes
        found, expected = (model.detect(image, known, Selection(threshold=0.0)) for image in (encoding, alone))
        # Padding changes the cells next to it a little; boxes of the other image are 17 pixels away.
        apart = torch.cdist(found.pred_boxes.tensor, expected.pred_boxes.tensor, p=torch.inf).min(dim=1).values
        assert len(found) == len(expected) > 10 and float(apart.median()) < 3
        torch.testing.assert_close(found.scores, expected.scores, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(5, 7), (16, 300), (33, 31)])
def test_images_of_any_size(size):
    model = build()
    (encoding,) = model.encode_images([image(*size)])
    found = model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))
    assert torch.isfinite(found.pred_boxes.tensor).all()
    assert not len(found) or float(found.pred_boxes.tensor.amax()) <= max(size)


def test_a_single_query():
    model = build(MODEL__CORA__NUM_QUERIES=1)
    (encoding,) = model.encode_images([image()])
    assert len(model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))) <= 2


def test_the_novel_factor_prefers_names_and_says_when_none_is_novel(caplog):
    names = tuple(f"word {i}" for i in range(12))
    plain, factor = build(), {"MODEL__CORA__NOVEL_FACTOR": 1e30, "MODEL__CORA__NOVEL_CLASSES": "word 7, Word 5"}
    model = build(**factor)
    (encoding,) = model.encode_images([image()])
    boxes = {
        "plain": plain.localize(plain.encode_images([image()])[0], classifier(*names)).proposal_boxes.tensor,
        "novel": model.localize(encoding, classifier(*names)).proposal_boxes.tensor,
    }
    assert not torch.equal(boxes["plain"], boxes["novel"])
    prior = model.novel.prior(names, torch.device("cpu"))
    assert prior.classes.nonzero()[:, 0].tolist() == [5, 7]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert model.novel.prior(("boat", "kite"), torch.device("cpu")) is None
    assert caplog.text.count("none of the 2 class names is in NOVEL_CLASSES") == 1


def test_the_objectness_power_is_an_exponent_of_the_score():
    names = classifier("cat", "dog")
    found = {}
    for power in (0.0, 1.0, 2.0):
        model = build(MODEL__CORA__OBJECTNESS_POWER=power, MODEL__ROI_HEADS__NMS_THRESH_TEST=1.0)
        (encoding,) = model.encode_images([image()])
        everything = model.detect(encoding, names, Selection(threshold=0.0))
        pairs = zip(everything.pred_boxes.tensor.tolist(), everything.pred_classes.tolist(), strict=True)
        found[power] = {(*box, label): score for (box, label), score in zip(pairs, everything.scores, strict=True)}
    same = found[0.0].keys() & found[1.0].keys() & found[2.0].keys()
    assert len(same) >= 40
    for key in same:
        probability, usual, squared = (float(found[power][key]) for power in (0.0, 1.0, 2.0))
        assert squared * probability == pytest.approx(usual**2, rel=1e-4)
        assert usual < probability


def test_boxes_are_clipped_unless_the_config_says_otherwise():
    tops = {}
    for clips in (True, False):
        model = build(MODEL__CORA__CLIP_BOXES=clips)
        (encoding,) = model.encode_images([image()])
        tops[clips] = float(model.detect(encoding, classifier("cat"), Selection(threshold=0.0)).pred_boxes.tensor.min())
    assert tops[True] >= 0 > tops[False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL__CORA__NUM_QUERIES": 0}, "MODEL.CORA.NUM_QUERIES: expected a whole number, at least 1, got 0"),
        ({"MODEL__CORA__NHEADS": 7}, "MODEL.CORA.NHEADS: expected a divisor of 256, got 7"),
        ({"MODEL__CORA__SPLIT_PROBABILITY": 1.5}, r"SPLIT_PROBABILITY: expected a probability in \[0, 1\], got 1.5"),
        ({"MODEL__CORA__NOVEL_FACTOR": 0.0}, "NOVEL_FACTOR: expected a factor above 0"),
        ({"MODEL__CORA__NOVEL_FACTOR": 8.0}, "NOVEL_CLASSES: expected the novel class names of NOVEL_FACTOR, got none"),
        ({"MODEL__CORA__COST__L1": 25.0}, "MODEL.CORA.COST: expected weights whose costs stay below 99, got .* to 111"),
        ({"MODEL__CORA__PREMATCHING_POOL": "cheap"}, "PREMATCHING_POOL: expected published or exact, got 'cheap'"),
        (
            {"MODEL__META_ARCHITECTURE": "RegionPromptCLIP", "MODEL__CLIP__CROP_REGION_TYPE": "RPN"},
            "OFFLINE_RPN_CONFIG: expected the YAML of the detector that proposes boxes, got nothing",
        ),
        (
            {"MODEL__META_ARCHITECTURE": "RegionPromptCLIP", "MODEL__CLIP__CROP_REGION_TYPE": "BOXES"},
            "CROP_REGION_TYPE: expected GT or FILE or GRID or NONE or RPN, got 'BOXES'",
        ),
    ],
)
def test_contradictions_are_reported_before_anything_is_built(overrides, message):
    with pytest.raises(UserError, match=message):
        check_config(config(**overrides))


def test_a_folder_with_config_and_weights_detects_by_words(tmp_path, detector_folder):
    """As `regionclip detect --model FOLDER` does; the text encoder is that of the tiny CLIP."""
    (tmp_path / "config.yaml").write_text(config().dump())
    torch.save({"model": build().state_dict()}, tmp_path / "model_final.pth")
    detector = RegionCLIP.from_pretrained(tmp_path, text_weights=str(detector_folder / "text.safetensors"))
    detector.set_vocabulary(["cat", "dog | puppy"], background=["kite"])
    pixels = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    detector.set_image(pixels)
    found = detector.predict(threshold=0.0, topk=5, words_per_box=2)
    assert 0 < len(found) <= 5
    assert set(found.names) <= {"cat", "dog"}
    named = detector.predict(boxes=[[10, 20, 60, 70]], embeddings=True)
    assert named.embeddings.shape == (1, 32)
