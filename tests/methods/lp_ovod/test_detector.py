"""LP-OVOD and CLIP on crops as detectors: own and given proposals, names, scores, bad input."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch.nn import functional as F

from regionclip import RegionCLIP
from regionclip.clip.crops import CropEncoder
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.data.class_lists import CLASS_LISTS
from regionclip.errors import UserError
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.methods.lp_ovod.scoring import fuse_probabilities
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.methods.lp_ovod.tiny import CONFIG, OVERRIDES, TEACHER, TEACHER_OVERRIDES, config

NAMES = CLASS_LISTS["coco65"]()


def build(base=CONFIG, options=OVERRIDES, **overrides):
    model = build_model(config(base, options, **overrides)).eval()
    fill_deterministic(model)
    return model


def crop_clip(**overrides):
    return build(TEACHER, TEACHER_OVERRIDES, **overrides)


def image(height=96, width=128, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def classifier(*names, dim=32):
    rows = deterministic_text_embeddings("names", len(names), dim)
    return BackgroundClassifier(Vocabulary(names, rows, torch.arange(len(names)), model="tiny_clip"), None, "cpu")


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("make", [build, crop_clip])
def test_hardly_any_proposal_is_no_error(make, count):
    model = make()
    (encoding,) = model.encode_images([image()], proposals=False)
    boxes = Boxes(torch.tensor([[10.0, 10, 90, 80]])[:count])
    encoding.proposals = Instances((96, 128), proposal_boxes=boxes, objectness_logits=torch.ones(count))
    found = model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))
    assert len(found) == 2 * count
    assert model.embed_regions(encoding, boxes).shape[0] == count


def test_its_own_rpn_proposes_where_the_config_names_no_other():
    model = build(MODEL__CLIP__CROP_REGION_TYPE="", MODEL__CLIP__OFFLINE_RPN_CONFIG="")
    assert not [key for key in model.state_dict() if key.startswith("offline_")]
    (encoding,) = model.encode_images([image()])
    with torch.no_grad():
        images = model.preprocessor([image()["image"]])
        (expected,), _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    assert torch.equal(encoding.proposals.proposal_boxes.tensor, expected.proposal_boxes.tensor)


def test_probabilities_are_fused_from_both_heads():
    model, known = build(), classifier("cat", "person", "dog")
    (encoding,) = model.encode_images([image()])
    boxes = Boxes(torch.tensor([[0.0, 0, 40, 40], [30, 10, 120, 90]]))
    with torch.no_grad():
        rois = model.roi_heads.pool(encoding.maps, [boxes])
        clip = (F.normalize(model.roi_heads.embed(rois), dim=1) @ known.embeddings.T / 0.01).softmax(dim=1)
        features = model.roi_heads.box_head(rois)
        prototypes = {
            **dict(zip(CLASS_LISTS["coco48"](), model.predictor.prototypes, strict=True)),
            **dict(zip(CLASS_LISTS["coco17"](), model.predictor.novel_prototypes, strict=True)),
        }
        logits = features @ torch.stack([prototypes[name] for name in known.names]).T
    novel, everywhere = torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool)
    expected = fuse_probabilities(logits, clip, novel, everywhere, model.weights)
    found = model.probabilities(model.embed_regions(encoding, boxes), known)
    torch.testing.assert_close(found[:, :-1], expected)
    torch.testing.assert_close(found[:, -1], 1 - expected.amax(dim=1))


def test_names_are_found_however_they_are_spelled():
    model = build()
    (encoding,) = model.encode_images([image()])
    embeddings = model.embed_regions(encoding, Boxes(torch.tensor([[0.0, 0, 40, 40]])))
    found = [model.probabilities(embeddings, classifier(*names)) for names in (("cat", "dog"), ("Cat", " DOG"))]
    assert torch.equal(*found)


def test_a_folder_detects_the_words_it_was_taught_and_says_how_to_teach_others(tmp_path, detector_folder):
    (tmp_path / "config.yaml").write_text(config().dump())
    torch.save({"model": build().state_dict()}, tmp_path / "model_final.pth")
    detector = RegionCLIP.from_pretrained(tmp_path, text_weights=str(detector_folder / "text.safetensors"))
    detector.set_vocabulary(["cat", "person"])
    detector.set_image(np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    found = detector.predict(threshold=0.0, topk=5, words_per_box=2, embeddings=True)
    assert 0 < len(found) <= 5 and set(found.names) <= {"cat", "person"}
    assert found.embeddings.shape == (len(found), 32)
    with pytest.raises(UserError, match=r"got traffic cone\. Fix: teach it: regionclip lp-ovod learn --words"):
        detector.set_vocabulary(["cat", "traffic cone"])


def test_crops_are_of_the_pixels_of_the_image():
    model, item = crop_clip(), image()
    (encoding,) = model.encode_images([item])
    boxes = torch.tensor([[5.0, 5, 60, 70], [40, 20, 128, 96]])
    embedded = model.embed_regions(encoding, Boxes(boxes))
    with torch.no_grad():
        expected = CropEncoder(
            model.backbone, lambda crops: (crops / 255 - model.preprocessor.mean) / model.preprocessor.std
        ).embed(item["image"], boxes)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=1e-4)


def test_the_rpn_proposes_on_the_image_that_it_is_made_for():
    """The tiny RPN takes images of 800 pixels; crops are of the original."""
    model = crop_clip(INPUT__MIN_SIZE_TEST=0)
    (encoding,) = model.encode_images([image(90, 120)])
    assert encoding.proposals.image_size == (90, 120)
    plain = crop_clip(INPUT__MIN_SIZE_TEST=90)
    pixels = np.asarray(
        Image.fromarray(image(90, 120)["image"].permute(1, 2, 0).numpy()).resize((1067, 800), Image.BILINEAR)
    )
    resized = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "height": 800, "width": 1067}
    (expected,) = plain.encode_images([resized])
    scale = torch.tensor([120 / 1067, 90 / 800] * 2)
    found, wanted = encoding.proposals.proposal_boxes.tensor, expected.proposals.proposal_boxes.tensor * scale
    torch.testing.assert_close(found, wanted[: len(found)], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "key"), [(build, "MODEL__LP_OVOD__OBJECTNESS"), (crop_clip, "MODEL__CLIP__MULTIPLY_RPN_SCORE")]
)
def test_scores_without_objectness_must_be_asked_for(make, key):
    boxes = Instances((96, 128), proposal_boxes=Boxes(torch.tensor([[10.0, 10, 90, 80]])))
    for asked in (False, True):
        model = make(**{key: str(not asked)})
        (encoding,) = model.encode_images([image()], proposals=False)
        encoding.proposals = boxes
        if asked:
            assert len(model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))) == 2
            continue
        with pytest.raises(UserError, match="expected False with proposals without objectness"):
            model.detect(encoding, classifier("cat", "dog"), Selection(threshold=0.0))


def test_crops_are_embedded_in_half_precision():
    boxes = Boxes(torch.tensor([[5.0, 5, 60, 70], [40, 20, 128, 96]]))
    models = crop_clip(), crop_clip()
    models[1].prepare_for_inference("bfloat16", "res5", "keep")
    whole, half = (m.embed_regions(m.encode_images([image()], proposals=False)[0], boxes) for m in models)
    assert half.dtype == torch.float32
    assert float(F.cosine_similarity(whole, half).min()) > 0.99


def test_clip_on_crops_is_a_detector_of_any_words():
    model = crop_clip()
    (encoding,) = model.encode_images([image()])
    found = model.detect(encoding, classifier("traffic cone", "pallet", "cat"), Selection(threshold=0.0, topk=4))
    assert len(found) == 4 and found.embeddings.shape == (4, 32)
    assert model.known_names is None
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.train().training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL__LP_OVOD__STAGE": "both"}, "MODEL.LP_OVOD.STAGE: expected base or probe, got 'both'"),
        ({"MODEL__LP_OVOD__ALPHA": 1.5}, r"ALPHA: expected an exponent in \[0, 1\], got 1.5"),
        ({"MODEL__LP_OVOD__NOVEL_TEMPERATURE": 0.0}, "NOVEL_TEMPERATURE: expected a temperature above 0"),
        ({"MODEL__LP_OVOD__NOVEL_CLASSES": "cat,Person"}, "expected each name once, got more than once: person"),
        ({"MODEL__LP_OVOD__NOVEL_CLASSES": ""}, "NOVEL_CLASSES: expected the classes to learn, got none"),
        ({"MODEL__CLIP__TEXT_EMB_DIM": 64}, "TEXT_EMB_DIM: expected 32, the embedding width of tiny_clip, got 64"),
        ({"MODEL__CLIP__CROP_REGION_TYPE": "BOXES"}, "CROP_REGION_TYPE: expected '' or RPN or FILE"),
        ({"DATASETS__TEST": "('coco_2017_ovd_all_test',)"}, "TEXT_EMB_PATH: expected embeddings of the classes of"),
    ],
)
def test_contradictions_are_reported_before_anything_is_built(overrides, message):
    with pytest.raises(UserError, match=message):
        check_config(config(**overrides))


def test_embeddings_need_names_that_have_prototypes(embedding_file):
    unnamed = embedding_file("lp_ovod", 3, 32)
    with pytest.raises(UserError, match="expected class names in the file, got none"):
        check_config(config(MODEL__CLIP__TEXT_EMB_PATH=unnamed))
    other = embedding_file("lp_ovod_pallet", 2, 32, ("cat", "pallet"))
    with pytest.raises(UserError, match="expected names of BASE_CLASSES and NOVEL_CLASSES, got pallet"):
        check_config(config(MODEL__CLIP__TEXT_EMB_PATH=other))
    check_config(config(MODEL__CLIP__TEXT_EMB_PATH=embedding_file("lp_ovod_known", 65, 32, NAMES)))
