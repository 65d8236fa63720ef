"""RAF on RegionCLIP's detector: crops by a CLIP of its own, fusions, boxes, class names, packing, bad input."""

import importlib
import json
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from regionclip import RegionCLIP
from regionclip.clip.architectures import get_architecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.padded_crops import CLIP_MEAN, CLIP_STD, CLIPPixels, whole_pixels
from regionclip.clip.prompts import PROMPT_ENSEMBLES
from regionclip.clip.text_encoder import TextEncoder
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.data.class_lists import parse_names
from regionclip.engine.detector import load_model
from regionclip.errors import UserError
from regionclip.hub.packing import pack_detector
from regionclip.hub.pretrained import Pretrained, load_pretrained
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.modeling.retrieval_augmentation.fusion import FUSIONS, keep_largest
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.ralf.added import RAF
from tests.methods.ralf.stores import write_augmenter, write_concepts
from tests.methods.regionclip import tiny

NAMES = ("cat", "dog", "traffic light", "boat")


@pytest.fixture
def other_clip(tmp_path):
    """Return the file of a tiny CLIP with a transformer image encoder."""
    size = json.loads((DATA / "tiny_clip.json").read_text())
    size["vision_cfg"] = {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16}
    (tmp_path / "other_clip.json").write_text(json.dumps(size))
    return str(tmp_path / "other_clip.json")


@pytest.fixture
def build(tmp_path, embedding_file):
    """Return what builds a tiny detector with RAF, with its config."""
    concepts = write_concepts(tmp_path / "concepts.safetensors")
    small = {"MODEL.ROI_HEADS.NUM_CLASSES": "4", "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": "20"}
    embeddings = {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("raf", len(NAMES), 32, NAMES)}

    def make(**changes):
        raf = {f"MODEL.RALF.RAF.{key}": str(value) for key, value in changes.items() if key != "INPUT"}
        raf |= {"INPUT.FORMAT": changes["INPUT"]} if "INPUT" in changes else {}
        own = {"MODEL.RALF.RAF.CONCEPTS": str(concepts), "MODEL.RALF.RAF.CLIP": str(DATA / "tiny_clip.json")}
        cfg = load_config(tiny.CONFIG, flat(tiny.OVERRIDES | small | embeddings | RAF | own | raf))
        model = build_model(cfg)
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return cfg, model.eval()

    return make


def image_input(seed=0, size=(96, 128)):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, *size), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": size[0], "width": size[1]}


BOXES = Boxes(torch.tensor([[0.0, 0, 40, 40], [30, 10, 120, 90], [5, 50, 60, 95]]))


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize("embedding", ["regions", "crops"])
def test_probabilities_are_those_of_a_literal_computation(build, fusion, embedding):
    _, model = build(FUSION=fusion, EMBEDDING=embedding, TOPK=2)
    with torch.no_grad():
        (encoding,) = model.encode_images([image_input()], proposals=False)
        embeddings = model.embed_regions(encoding, BOXES)
        own = model.encode_boxes(encoding.maps, BOXES)
        seen = F.normalize(own, dim=1)
        if embedding == "crops":
            crops = CLIPPixels()(image_input()["image"], whole_pixels(BOXES.tensor, (96, 128)), 64)
            seen = F.normalize(model.raf.clip.backbone.embed_images(crops), dim=1)
        augmented = model.raf.augmenter(seen, model.raf.concepts)
        text = F.normalize(model.roi_heads.box_predictor.cls_score.weight, dim=1)
        cosines = keep_largest(torch.cat([augmented @ text.T, torch.zeros(3, 1)], dim=1), 2)
        plain = model.roi_heads.box_predictor(own)[0].softmax(dim=1)
        found = model.probabilities(embeddings, None)
    assert embeddings.shape == (3, 64)
    torch.testing.assert_close(embeddings, torch.cat([own, augmented], dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, FUSIONS[fusion](0.25)(plain, cosines), atol=1e-5, rtol=1e-4)


def test_one_box_and_no_box_are_embedded(build):
    _, model = build(EMBEDDING="crops")
    (encoding,) = model.encode_images([image_input()], proposals=False)
    many = model.embed_regions(encoding, BOXES)
    torch.testing.assert_close(model.embed_regions(encoding, BOXES[1]), many[1:2], atol=1e-5, rtol=1e-4)
    assert model.embed_regions(encoding, BOXES[:0]).shape == (0, 64)


def test_a_batch_of_images_is_the_images_alone(build):
    _, model = build(EMBEDDING="crops")
    inputs = [image_input(0), image_input(1)]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([image])[0] for image in inputs]
    for one, other in zip(together, alone, strict=True):
        assert len(one["instances"])
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores, atol=1e-4, rtol=1e-3)
        assert torch.equal(one["instances"].pred_classes, other["instances"].pred_classes)


def test_final_boxes_can_be_embedded(build):
    _, proposals = build(EMBEDDING="crops")
    _, final = build(EMBEDDING="crops", BOX_SOURCE="final")
    (encoding,) = final.encode_images([image_input()], proposals=False)
    found = final.embed_regions(encoding, BOXES)
    refined = Boxes(final.roi_heads.box_predictor.refine(found[:, :32], BOXES))
    (encoding,) = proposals.encode_images([image_input()], proposals=False)
    expected = proposals.embed_regions(encoding, refined)
    torch.testing.assert_close(found[:, 32:], expected[:, 32:], atol=1e-5, rtol=1e-4)


def test_a_clip_of_another_size_embeds_class_names_itself(build, other_clip):
    _, model = build(EMBEDDING="crops", CLIP=other_clip)
    (encoding,) = model.encode_images([image_input()])
    vocabulary = Vocabulary(NAMES[:3], model.roi_heads.box_predictor.cls_score.weight[:3].clone(), torch.arange(3))
    classifier = BackgroundClassifier(vocabulary, None, "cpu")
    features = model.raf.split(model.embed_regions(encoding, BOXES))[1]
    embedder = NameEmbedder(model.raf.clip.lang_encoder, get_architecture(other_clip).name, "cpu")
    text = F.normalize(embedder.embed(NAMES[:3], PROMPT_ENSEMBLES["raf"]), dim=1)
    torch.testing.assert_close(model.raf._cosines(features, classifier), features @ text.T)
    assert len(model.detect(encoding, classifier, Selection(threshold=0.0)))


def test_a_detector_of_bgr_images_gives_clip_rgb(build):
    rgb = build(EMBEDDING="crops")[1].raf.clip.pixels
    _, model = build(EMBEDDING="crops", **{"INPUT": "BGR"})
    image, box = image_input()["image"], whole_pixels(torch.tensor([[0.0, 0, 128, 96]]), (96, 128))
    torch.testing.assert_close(model.raf.clip.pixels(image.flip(0), box, 64), rgb(image, box, 64))
    as_published = build(EMBEDDING="crops", PIXEL_MODE="uint8", **{"INPUT": "BGR"})[1].raf.clip.pixels
    gray = as_published(image.flip(0), box, 64) * torch.tensor(CLIP_STD)[:, None, None]
    gray = (gray + torch.tensor(CLIP_MEAN)[:, None, None]) * 255
    torch.testing.assert_close(gray, gray.round(), atol=1e-3, rtol=0)  # truncated, channels as they are
    assert not torch.allclose(gray[:, 0], gray[:, 2])


@pytest.mark.parametrize("mode", ["clip", "uint8", "detector"])
def test_pixels_are_as_the_mode_says(build, mode):
    _, model = build(EMBEDDING="crops", PIXEL_MODE=mode)
    whole = Boxes(torch.tensor([[0.0, 0, 128, 96]]))
    image = image_input()
    crops = model.raf.clip.pixels(image["image"], whole_pixels(whole.tensor, (96, 128)), 64)
    border = crops[0, :, 0, 0]
    if mode == "detector":
        assert torch.equal(border, torch.zeros(3))
    else:
        black = [-mean / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
        torch.testing.assert_close(border, torch.tensor(black))
    assert (crops.std() > 0.3) and crops.shape == (1, 3, 64, 64)


def test_weights_come_from_their_own_files(build, other_clip, tmp_path):
    cfg, model = build(EMBEDDING="crops", CLIP=other_clip)
    state = model.state_dict()
    own = {key: value for key, value in state.items() if not key.startswith("raf.")}
    torch.save({"model": own}, tmp_path / "detector.pth")
    clip = {key.removeprefix("raf.clip."): value for key, value in state.items() if key.startswith("raf.clip.")}
    bare = {key.replace("backbone.", "visual.").replace("lang_encoder.", ""): value for key, value in clip.items()}
    torch.save(bare, tmp_path / "clip.pt")
    files = {"augmenter": str(write_augmenter(tmp_path / "augmenter.pth")), "crop_clip": str(tmp_path / "clip.pt")}
    loaded = load_model(cfg, str(tmp_path / "detector.pth"), files)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in bare_without_augmenter(state).items())
    with pytest.raises(
        UserError, match=r"weights of raf.augmenter: .* Fix: name a file that has them in MODEL.RALF.RAF.WEIGHTS"
    ):
        load_model(cfg, str(tmp_path / "detector.pth"), {"crop_clip": files["crop_clip"]})
    with pytest.raises(UserError, match="expected an augmenter, with class_embedding, got keys such as"):
        load_model(cfg, str(tmp_path / "detector.pth"), {**files, "augmenter": files["crop_clip"]})


def bare_without_augmenter(state):
    return {key: value for key, value in state.items() if not key.startswith("raf.augmenter.")}


def empty_file(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    return tmp_path / "empty.pth"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda path: {"CONCEPTS": ""}, "RAF.CONCEPTS: expected a file of concept embeddings, got none"),
        (
            lambda path: {"CONCEPTS": empty_file(path)},
            "RAF.CONCEPTS .*empty.pth: expected a tensor file, got unreadable",
        ),
        (lambda path: {"CONCEPTS": write_concepts(path / "wide.safetensors", dim=64)}, r"a float tensor \[K, 32\]"),
        (lambda path: {"CONCEPTS": write_concepts(path / "few.safetensors", count=4)}, "at least 5 concepts, got 4"),
        (lambda path: {"OFFSET": 0.9, "FUSION": "scale"}, "RAF.OFFSET: expected a number from -0.26 to 0.26"),
        (lambda path: {"WEIGHTS": "absent.pth"}, "RAF.WEIGHTS: expected a file of weights, got absent.pth"),
        (lambda path: {"BOX_SOURCE": "final"}, "RAF.BOX_SOURCE: expected proposal with EMBEDDING regions"),
        (lambda path: {"TOPK": 0}, "RAF.TOPK: expected a whole number, at least 1, got 0"),
        (lambda path: {"FUSION": "sum"}, "RAF.FUSION: expected scale or log_add or prob_add"),
        (lambda path: {"CLIP": "ViT-Z/1", "EMBEDDING": "crops"}, "ViT-Z/1"),
    ],
)
def test_bad_input_is_one_clear_error(build, tmp_path, changes, message):
    cfg, _ = build()
    bad = {f"MODEL.RALF.RAF.{key}": str(value) for key, value in changes(tmp_path).items()}
    cfg = cfg.clone()
    cfg.merge_from_list(flat(bad))
    with pytest.raises(UserError, match=message):
        check_config(cfg)


def test_class_names_must_be_known_to_another_clip(build, other_clip, embedding_file):
    cfg, _ = build()
    other = {"EMBEDDING": "crops", "CLIP": other_clip}
    cfg = cfg.clone()
    cfg.merge_from_list(flat({f"MODEL.RALF.RAF.{key}": value for key, value in other.items()}))
    check_config(cfg)
    cfg.merge_from_list(["MODEL.CLIP.TEXT_EMB_PATH", embedding_file("raf", 4, 32)])
    with pytest.raises(UserError, match="expected class names in the file, for the text encoder of other_clip"):
        check_config(cfg)


def test_methods_that_embed_no_regions_for_it_refuse_it():
    cfg = load_config(tiny.CONFIG, flat(tiny.OVERRIDES | RAF))
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "CORA"])
    with pytest.raises(UserError, match=r"MODEL.RALF.RAF.ENABLED: expected False with CORA, got True"):
        check_config(cfg)


def test_a_packed_detector_has_its_augmenter_and_concepts(build, other_clip, tmp_path):
    cfg, model = build(EMBEDDING="crops", CLIP=other_clip)
    cfg.merge_from_list(["MODEL.RALF.RAF.WEIGHTS", "gone.pth", "MODEL.RALF.RAL.ENABLED", "True"])
    encoder = TextEncoder(get_architecture(str(DATA / "tiny_clip.json")))
    fill_deterministic(encoder)
    embedder = NameEmbedder(encoder, "tiny_clip", "cpu")
    pack_detector(Pretrained(model, cfg, lambda: embedder), tmp_path / "packed", list(NAMES))
    (tmp_path / "concepts.safetensors").unlink()
    Path(other_clip).unlink()
    loaded = load_pretrained(str(tmp_path / "packed"), device="cpu").model
    assert torch.equal(loaded.raf.concepts, model.raf.concepts)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items() if key.startswith("raf."))
    assert loaded.ral is None


def test_files_of_equal_names_are_packed_apart(build, tmp_path):
    cfg, model = build(EMBEDDING="crops")
    size = json.loads((DATA / "tiny_clip.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny_clip.json").write_text(json.dumps({**size, "quick_gelu": False}))
    (tmp_path / "concepts.safetensors").rename(tmp_path / "vocabulary.safetensors")
    files = {"CONCEPTS": tmp_path / "vocabulary.safetensors", "CLIP": tmp_path / "other" / "tiny_clip.json"}
    cfg.merge_from_list(flat({f"MODEL.RALF.RAF.{key}": str(file) for key, file in files.items()}))
    model = build_model(cfg)
    encoder = TextEncoder(get_architecture(str(DATA / "tiny_clip.json")))
    embedder = NameEmbedder(encoder, "tiny_clip", "cpu")
    pack_detector(Pretrained(model, cfg, lambda: embedder), tmp_path / "packed", list(NAMES))
    loaded = load_pretrained(str(tmp_path / "packed"), device="cpu").model
    assert torch.equal(loaded.raf.concepts, model.raf.concepts)
    assert not loaded.raf.clip.architecture.quick_gelu and loaded.text_space.clip == "tiny_clip"


def test_a_clip_of_the_same_name_is_another_one(build, tmp_path):
    size = json.loads((DATA / "tiny_clip.json").read_text())
    (tmp_path / "tiny_clip.json").write_text(json.dumps({**size, "quick_gelu": False}))
    _, model = build(EMBEDDING="crops", CLIP=tmp_path / "tiny_clip.json")
    assert model.raf.clip.lang_encoder is not None
    assert build(EMBEDDING="crops")[1].raf.clip.lang_encoder is None


@pytest.mark.parametrize("mode", ["clip", "detector"])
def test_a_detector_can_be_pickled_with_its_encodings(build, other_clip, mode):
    _, model = build(EMBEDDING="crops", CLIP=other_clip, PIXEL_MODE=mode)
    encodings = model.encode_images([image_input()])
    found = model.detect(encodings[0], None, Selection())
    copy, encoding = pickle.loads(pickle.dumps((model, encodings[0])))
    again = copy.detect(encoding, None, Selection())
    assert torch.equal(again.scores, found.scores)
    twin = deepcopy(model)
    for weight in twin.raf.clip.lang_encoder.parameters():
        weight.data.zero_()
    assert torch.equal(model.detect(encodings[0], None, Selection()).scores, found.scores)


def test_a_detector_with_concepts_is_not_exported(build):
    with pytest.raises(UserError, match="export: expected a detector without RAF"):
        list(build()[1].export_parts())


def test_boxes_that_are_not_finite_are_dropped(build):
    _, model = build(EMBEDDING="crops", BOX_SOURCE="final")
    model.roi_heads.box_predictor.keep_proposal_boxes = False
    model.roi_heads.box_predictor.bbox_pred.bias.data[:] = float("nan")
    (encoding,) = model.encode_images([image_input()])
    assert len(model.detect(encoding, None, Selection())) == 0


def test_the_fingerprint_of_a_detector_depends_on_its_concepts(build):
    cfg, model = build()
    same, other = deepcopy(model), deepcopy(model)
    other.raf.concepts.copy_(other.raf.concepts.flip(0))
    prints = [RegionCLIP(part, cfg, embedder=lambda: None).fingerprint for part in (model, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("fusion", ["scale", "prob_add"])
@pytest.mark.parametrize("method", ["ralf", "lp_ovod"])
def test_other_detectors_are_reweighted_by_a_literal_computation(method, fusion, tmp_path, embedding_file):
    case = importlib.import_module(f"tests.methods.{method}.tiny")
    names = parse_names(case.NAMES)
    raf = RAF | {"MODEL.RALF.RAF.FUSION": fusion, "MODEL.RALF.RAF.TOPK": "2", "MODEL.RALF.RAF.EMBEDDING": "crops"}
    raf |= {"MODEL.RALF.RAF.CLIP": str(DATA / "tiny_clip.json"), "DATASETS.TEST": "()"}
    raf["MODEL.RALF.RAF.CONCEPTS"] = str(write_concepts(tmp_path / "concepts.safetensors"))
    files = {case.EMBEDDINGS: embedding_file("conformance", case.CLASSES, 32, names)}
    models = []
    for changes in ({"DATASETS.TEST": "()"}, raf):
        cfg = load_config(case.CONFIG, flat(case.OVERRIDES | files | changes))
        check_config(cfg)
        models.append(build_model(cfg).eval())
        fill_deterministic(models[-1])
    plain, model = models
    (encoding,) = model.encode_images([image_input()], proposals=False)
    embeddings = model.embed_regions(encoding, BOXES)
    crops = CLIPPixels()(image_input()["image"], whole_pixels(BOXES.tensor, (96, 128)), 64)
    known = model.configured_classes()
    with torch.no_grad():
        seen = F.normalize(model.raf.clip.backbone.embed_images(crops), dim=1)
        augmented = model.raf.augmenter(seen, model.raf.concepts)
        own = plain.embed_regions(plain.encode_images([image_input()], proposals=False)[0], BOXES)
        before = plain.probabilities(own, None)
        last = augmented @ model.predictor.background if method == "ralf" else torch.zeros(3)
        cosines = keep_largest(torch.cat([known(augmented), last[:, None]], dim=1), 2)
    torch.testing.assert_close(embeddings, torch.cat([own, augmented], dim=1), atol=1e-4, rtol=1e-3)
    expected = FUSIONS[fusion](0.25)(before, cosines)
    torch.testing.assert_close(model.probabilities(embeddings, None), expected, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(expected, before, atol=1e-3)


def test_fusions_that_need_a_softmax_are_refused(embedding_file, tmp_path):
    case = importlib.import_module("tests.methods.ralf.tiny")
    concepts = write_concepts(tmp_path / "concepts.safetensors")
    cfg = case.config(**{key.replace(".", "__"): value for key, value in RAF.items()})
    cfg.merge_from_list(["MODEL.RALF.RAF.CONCEPTS", str(concepts)])
    with pytest.raises(UserError, match=r"RAF.FUSION: expected scale or prob_add with DetPro"):
        check_config(cfg)
