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
from regionclip.methods.cora.classes import NovelClasses
from regionclip.methods.cora.heads import class_probabilities
from regionclip.methods.cora.matching import HungarianMatcher, LayerOutput
from regionclip.methods.cora.pooling import boxes_of_images
from regionclip.methods.cora.prematching import NovelPrior, match_classes
from regionclip.methods.cora.prompting import _on_cells
from regionclip.modeling.build import build_model
from regionclip.modeling.configured_classes import ConfiguredClasses
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
    padding = encoded.cells3.padding
    with torch.no_grad():
        projected = localizer.input_proj[0](encoded.layer3)
        found |= sampled("input_proj", projected, golden["input_proj/stride"])
        position = encoded.memory_position.masked_fill(padding.flatten(1)[..., None], 0)
        by_place = position.transpose(1, 2).unflatten(2, tuple(padding.shape[1:]))
        found |= sampled("pos_layer3", by_place, golden["pos_layer3/stride"])
        memory, encoder = projected.flatten(2).transpose(1, 2), localizer.transformer.encoder
        for number, layer in enumerate(encoder.layers):
            memory = layer(memory, encoded.memory_position * encoder.query_scale(memory), padding.flatten(1))
            visible = memory.masked_fill(padding.flatten(1)[..., None], 0)
            found |= sampled(f"memory{number}", visible, golden[f"memory{number}/stride"])
    assert torch.equal(memory, encoded.memory)
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
        matched = torch.from_numpy(golden["prematch/classes_factor8"])
        content = localizer.text_proj(text.embeddings)[matched]
        queries = localizer.query_embed.weight.expand(len(matched), -1, -1)
        decoder, cells = localizer.transformer.decoder, encoded.cells3.padding.flatten(1)
        decoded = decoder(content, queries, encoded.memory, encoded.memory_position, cells)
        last = boxes_of_images(layers[-1].boxes[:, golden["final/rows"]], encoded.cells3)
        regions = localizer.roi_heads.encode({"res4": encoded.layer3}, [Boxes(part) for part in last])
    unit = F.normalize(regions, dim=1).unflatten(0, (2, -1))
    rows = golden["prematch/rows"]
    best = (F.normalize(anchors, dim=-1) @ text.embeddings.T).max(dim=-1).values
    computed = {
        "anchors": localizer.query_embed.weight.detach().sigmoid().numpy(),
        "prematch/features": F.normalize(anchors[:, rows], dim=-1).numpy(),
        "prematch/cosine_best_factor1": best.numpy(),
        "content": content[:, rows].numpy(),
        "boxes": torch.stack([layer.boxes for layer in layers]).numpy(),
        "objectness": torch.stack([layer.logits for layer in layers]).numpy(),
        "references": decoded.references[:, :, rows].numpy(),
        "hs": decoded.states[:, :, golden["hs_rows"]].numpy(),
        "final/features": unit.numpy(),
    }
    report = compare({key: golden[key] for key in computed}, computed)
    assert report.ok and report.rows, report.text()
    probabilities = class_probabilities(regions, text, 0.01)[:, :-1].unflatten(0, (2, -1))
    scores = probabilities * layers[-1].logits[:, golden["final/rows"], None].sigmoid()
    expected = golden["final/logits"][:, golden["final/rows"]]
    found = scores.clamp(1e-5, 1 - 1e-5).logit().numpy()
    assert np.abs(found - expected).max() <= 3e-4 * np.abs(expected).max() + 3e-3


def cora_prior(novel):
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
    found = {}
    compute = model.losses.__call__

    def losses_of(layers, matched, targets):
        found.update(layers=layers, classes=matched, targets=targets)
        return compute(layers, matched, targets)

    monkeypatch.setattr(model, "losses", losses_of)
    with EventStorage() as storage:
        losses = model(batch)
        if f"{case}/losses/matched_gt" in golden.files:
            assert storage.latest()["matched_objects"][0] == pytest.approx(float(golden[f"{case}/losses/matched_gt"]))
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
    check_matching(golden, case, found)
    for name in {key.split("/")[2] for key in golden.files if key.startswith(f"{case}/grad/")}:
        sample = golden[f"{case}/grad/{name}/sample"]
        own = trained[name].grad.flatten()[:: int(golden[f"{case}/grad/{name}/stride"])].numpy()
        assert np.abs(own - sample).max() <= 5e-3 * np.abs(sample).max(), name
    norms = np.array([float(trained[key].grad.norm()) for key in expected])
    whole = float(golden[f"{case}/grad_norm_total"])
    assert float((norms**2).sum() ** 0.5) == pytest.approx(whole, rel=1e-2)
    allowed = 1e-2 * np.abs(golden[f"{case}/grad_norms"]) + 1e-4
    assert (np.abs(norms - golden[f"{case}/grad_norms"]) <= allowed).all()


def check_matching(golden, case, found):
    """Compare classes, boxes, objectness, and matched pairs of all layers."""
    layers, classes = found["layers"], found["classes"]
    assert np.array_equal(classes, golden[f"{case}/classes"])
    computed = {
        f"{case}/boxes": torch.stack([layers[number].boxes for number in (0, 3, 5)]).detach().numpy(),
        f"{case}/objectness": torch.stack([layer.logits for layer in layers]).detach().numpy(),
    }
    report = compare({key: golden[key] for key in computed}, computed)
    assert report.ok and report.rows, report.text()
    for number, layer in enumerate(layers):
        pairs = HungarianMatcher().match(LayerOutput(*(part.detach() for part in layer)), classes, found["targets"])
        rows = [[image, *pair] for image, of_image in enumerate(pairs) for pair in of_image.tolist()]
        assert sorted(rows) == golden[f"{case}/pairs_layer{number}"].tolist(), number


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
    logits = 100 * model.train_classes(F.normalize(features, dim=1)).numpy()
    assert np.abs(logits - golden[f"{case}/logits"]).max() <= 3e-4 * np.abs(logits).max() + 3e-3
    assert np.linalg.norm(gradient) == pytest.approx(float(golden[f"{case}/grad_norm"]), rel=2e-3)
    check_given_boxes(golden, case, model, batch)
    best = model.train_classes(F.normalize(features, dim=1)).argmax(dim=1)
    assert np.array_equal(golden["base_category_ids"][best], golden[f"{case}/relabel"][:, 1])


def check_given_boxes(golden, case, model, batch):
    """Compare the evaluation with ground-truth boxes among 65 classes, and the maps that enter the attention pool."""
    text, found, maps = classes("coco_65", 65), {}, []
    with torch.no_grad():
        encodings = model.encode_images(batch)
        for photo, image, encoding in zip(PHOTOS, batch, encodings, strict=True):
            detections = model.detect(encoding, text, Selection(threshold=0.0, topk=100))
            height, width = detections.image_size
            scale = torch.tensor([image["width"] / width, image["height"] / height] * 2)
            name = f"{case}/eval65/{photo}/det"
            found[f"{name}_boxes"] = (detections.pred_boxes.tensor * scale).numpy()
            found[f"{name}_scores"] = detections.scores.numpy()
            found[f"{name}_classes"] = detections.pred_classes.numpy()
            boxes = _on_cells(image["instances"].gt_boxes, encoding.size, encoding.cells)
            maps.append(model.roi_heads.encoder.region_maps([encoding.maps["res4"]], [boxes]))
    if case == "clip_embedding":
        found |= sampled("pooled", torch.cat(maps), golden["pooled/stride"])
    report = compare({key: golden[key] for key in found}, found)
    assert report.ok and report.rows, report.text()
