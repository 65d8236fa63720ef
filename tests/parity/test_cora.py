"""CORA whole, against numbers of the published system (goldens `l`, `m`, `n`): RN50 with generated weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from regionclip.config.loading import load_config
from regionclip.methods.cora import detector as cora
from regionclip.methods.cora.classes import ConfiguredClasses, NovelClasses
from regionclip.methods.cora.prematching import match_classes
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.goldens.compare import compare
from tests.helpers.cora import fill, seeded

FOLDER = os.environ.get("REGIONCLIP_GOLDENS", "")
PHOTOS = ("139", "460229")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="set REGIONCLIP_GOLDENS to the folder of all goldens"),
]


def load(name):
    return np.load(Path(FOLDER) / name)


def classes(name, rows):
    return ConfiguredClasses(F.normalize(deterministic_text_embeddings(name, rows, 1024), dim=1))


def build(config, **overrides):
    options = {"MODEL.DEVICE": "cpu", "MODEL.CORA.DROPOUT": 0.0, **overrides}
    return fill(build_model(load_config(config, [part for pair in options.items() for part in map(str, pair)])))


def images(*, boxes=None):
    inputs = load("inputs.npz")
    batch = []
    for photo in PHOTOS:
        pixels = torch.from_numpy(inputs[f"{photo}/image"])
        height, width = inputs[f"{photo}/orig_hw"].tolist()
        batch.append({"image": pixels, "height": height, "width": width})
    return batch


def sampled(name, tensor, stride):
    tensor = tensor.detach()
    return {
        f"{name}/shape": np.array(tensor.shape),
        f"{name}/mean": tensor.double().mean().numpy(),
        f"{name}/std": tensor.double().std(correction=0).numpy(),
        f"{name}/sample": tensor.flatten()[:: int(stride)].numpy(),
    }


@pytest.fixture(scope="module")
def localizer():
    return build("configs/cora/coco_rn50.yaml", **{"MODEL.CORA.CLIP_BOXES": False}).eval()


@pytest.fixture(scope="module")
def encoded(localizer):
    return localizer._encode(images())


def test_maps_and_memory(localizer, encoded):
    golden = load("l_cora_rn50_infer.npz")
    found = {}
    for name, tensor in (("layer3", encoded.layer3), ("layer4", encoded.layer4)):
        found |= sampled(name, tensor, golden[f"{name}/stride"])
    padding = encoded.cells3.padding.flatten(1)
    memory = encoded.memory.masked_fill(padding[..., None], 0)
    found |= sampled("memory2", memory, golden["memory2/stride"])
    report = compare({key: golden[key] for key in found}, found)
    assert report.ok, report.text()
    for name, cells in (("layer3", encoded.cells3), ("layer4", encoded.cells4)):
        assert np.array_equal(np.stack([cells.columns, cells.rows], axis=1), golden[f"{name}/valid_cols_rows"])
        assert np.array_equal(cells.padding, golden[f"{name}/mask"])


def test_boxes_and_objectness_of_all_layers(localizer, encoded):
    golden, text = load("l_cora_rn50_infer.npz"), classes("coco_65", 65)
    anchors = localizer.embed_anchors(encoded)
    plain = match_classes(anchors, text.embeddings)
    assert (plain.numpy() != golden["prematch/classes_factor1"]).mean() <= 0.001
    novel = torch.zeros(65, dtype=torch.bool)
    novel[[4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]] = True
    found = match_classes(anchors, text.embeddings, cora_prior(novel))
    close = (
        golden["prematch/margin_factor8"] < 2e-3 if "prematch/margin_factor8" in golden else np.zeros((2, 1000), bool)
    )
    assert np.array_equal(found.numpy()[~close], golden["prematch/classes_factor8"][~close])
    with torch.no_grad():
        layers = localizer.decode(encoded, torch.from_numpy(golden["prematch/classes_factor8"]), text.embeddings)
    computed = {
        "boxes": torch.stack([layer.boxes for layer in layers]).numpy(),
        "objectness": torch.stack([layer.logits for layer in layers]).numpy(),
    }
    report = compare({key: golden[key] for key in computed}, computed)
    assert report.ok, report.text()


def cora_prior(novel):
    from regionclip.methods.cora.prematching import NovelPrior

    return NovelPrior(novel, 8.0)


def test_detections(localizer, encoded):
    golden, text = load("l_cora_rn50_infer.npz"), classes("coco_65", 65)
    names = [f"class {i}" for i in range(65)]
    text.names = tuple(names)
    novel = [4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]
    localizer.novel = NovelClasses(frozenset(names[i] for i in novel), 8.0)
    sizes = {photo: (image["height"], image["width"]) for photo, image in zip(PHOTOS, images(), strict=True)}
    found = {}
    for number, photo in enumerate(PHOTOS):
        encoding = cora.CORAEncoding(encoded[number], localizer.embed_anchors, localizer._propose)
        detections = localizer.detect(encoding, text, Selection())
        height, width = detections.image_size
        scale = torch.tensor([sizes[photo][1] / width, sizes[photo][0] / height] * 2)
        found[f"{photo}/det_boxes"] = (detections.pred_boxes.tensor * scale).numpy()
        found[f"{photo}/det_scores"] = detections.scores.numpy()
        found[f"{photo}/det_classes"] = detections.pred_classes.numpy()
    report = compare({key: golden[key] for key in found}, found)
    assert report.rows and report.ok, report.text()


def targets_of(golden, batch):
    for number, image in enumerate(batch):
        height, width = image["image"].shape[1:]
        center, half = np.split(golden[f"image{number}/gt_boxes"], 2, axis=1)
        corners = np.concatenate([center - half / 2, center + half / 2], axis=1) * [width, height, width, height]
        image["instances"] = Instances((height, width))
        image["instances"].gt_boxes = Boxes(torch.from_numpy(corners).float())
        image["instances"].gt_classes = torch.from_numpy(golden[f"image{number}/gt_labels"])
    return batch


@pytest.mark.parametrize("case", ["whole", "split"])
def test_losses_and_gradients(case, monkeypatch):
    golden = load("m_cora_losses.npz")
    model = build("configs/cora/coco_rn50.yaml", **{"MODEL.CORA.NUM_QUERIES": 300}).train()
    model.train_classes = classes("coco_48_base", 48)
    batch = targets_of(golden, images())
    monkeypatch.setattr(cora, "draw_split", lambda iteration, probability: case == "split")
    if case == "split":
        monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.from_numpy(golden["split/rand"]))
    with EventStorage():
        losses = model(batch)
    total = sum(losses.values())
    names = {"loss_objectness": ("loss_ce", 2), "loss_l1": ("loss_bbox", 5), "loss_giou": ("loss_giou", 2)}
    for name, (published, weight) in names.items():
        for suffix in ("", *(f"_{layer}" for layer in range(5))):
            expected = float(golden[f"{case}/losses/{published}{suffix}"])
            assert float(losses[name + suffix].detach()) / weight == pytest.approx(expected, rel=1e-4), name + suffix
    assert float(total) == pytest.approx(float(golden[f"{case}/losses/total"]), rel=1e-4)
    total.backward()
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    expected = json.loads(str(golden[f"{case}/grad_names"]))
    assert set(trained) == set(expected)
    norms = np.array([float(trained[key].grad.norm()) for key in expected])
    allowed = 1e-2 * np.abs(golden[f"{case}/grad_norms"]) + 1e-4
    assert (np.abs(norms - golden[f"{case}/grad_norms"]) <= allowed).all()


@pytest.mark.parametrize("case", ["clip_embedding", "prompt"])
def test_region_prompting(case):
    golden = load("n_cora_prompt.npz")
    model = build("configs/cora/region_coco_rn50.yaml").train()
    model.train_classes = classes("coco_48_base", 48)
    if case == "prompt":
        with torch.no_grad():
            model.backbone.attnpool.positional_embedding.copy_(seeded("n/prompt", (50, 2048), 0.25))
    batch, first = images(), 0
    for photo, image in zip(PHOTOS, batch, strict=True):
        height, width = image["image"].shape[1:]
        boxes = golden[f"{photo}/gt_boxes_normalised"]
        center, half = np.split(boxes, 2, axis=1)
        corners = np.concatenate([center - half / 2, center + half / 2], axis=1) * [width, height, width, height]
        image["instances"] = Instances((height, width))
        image["instances"].gt_boxes = Boxes(torch.from_numpy(corners).float())
        labels = golden["labels"]
        image["instances"].gt_classes = torch.from_numpy(labels[first : first + len(boxes)])
        first += len(boxes)
    losses = model(batch)
    assert float(losses["loss_region_prompt"]) == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-4)
    losses["loss_region_prompt"].backward()
    (trained,) = [key for key, weight in model.named_parameters() if weight.requires_grad]
    gradient = model.get_parameter(trained).grad.numpy()
    expected = golden[f"{case}/grad_prompt"]
    assert np.abs(gradient - expected).max() <= 2e-3 * np.abs(expected).max()
    model.eval()
    with torch.no_grad():
        features = torch.cat(
            [
                model.embed_regions(encoding, image["instances"].gt_boxes)
                for encoding, image in zip(model.encode_images(batch, proposals=False), batch, strict=True)
            ]
        )
    assert np.abs(F.normalize(features, dim=1).numpy() - golden[f"{case}/features"]).max() <= 2e-4
    best = model.train_classes(F.normalize(features, dim=1)).argmax(dim=1)
    assert np.array_equal(golden["base_category_ids"][best], golden[f"{case}/relabel"][:, 1])
