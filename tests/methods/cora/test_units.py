"""Parts of CORA against numbers of the published system (goldens `k`)."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.methods.cora import encodings, pooling, prematching
from regionclip.methods.cora.heads import RegionPromptHead
from regionclip.methods.cora.losses import LocalizerLosses
from regionclip.methods.cora.matching import HungarianMatcher, LayerOutput, Targets
from regionclip.methods.cora.transformer import MLP, DABTransformer, Decoded, predict_boxes
from regionclip.modeling.heads.region_encoder import RegionEncoder
from regionclip.modeling.postprocess import ProbabilityTimesObjectness
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.cora import fill, seeded, value
from tests.helpers.paths import GOLDENS

UNITS = np.load(GOLDENS / "k_cora_units.npz")


def golden(key):
    return torch.from_numpy(UNITS[key])


def assert_close(actual, key):
    expected = golden(key)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not expected.is_floating_point():
        assert torch.equal(actual, expected)
        return
    if expected.numel():
        allowed = 2e-4 * float(expected.abs().max()) + 1e-5
        assert float((actual.detach() - expected).abs().max()) <= allowed


def text_embeddings(name, rows, dim):
    return F.normalize(deterministic_text_embeddings(name, rows, dim), dim=1)


@pytest.fixture(scope="module")
def pool():
    module = AttentionPool2d(7, 128, 2, 64)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(value(f"backbone.0.attn_pool.{key}", tensor.shape, "k"))
    return module


def cells(number):
    """Valid cells of the small maps: 12 x 9 and 8 x 6 of 12 x 9."""
    padding = golden("pe/grid_mask").bool()
    columns, rows = golden("pool/valid_cols_rows").T
    return encodings.ValidCells(padding, columns, rows)


def test_grid_cells_are_encoded_y_before_x():
    padding = golden("pe/grid_mask").bool()
    encoded = encodings.encode_grid(padding).masked_fill(padding[:, None], 0)
    assert_close(encoded, "pe/grid")


def test_anchors_are_encoded_y_x_w_h():
    assert_close(encodings.encode_anchors(golden("pe/query_in")), "pe/query")


def test_valid_cells_of_padded_images():
    for height, width, high, wide, rows, columns, valid_columns, valid_rows in golden("valid/cases").tolist():
        padding = encodings.padding_of([(height, width)], (high, wide), torch.device("cpu"))
        found = encodings.valid_cells(padding, (rows, columns))
        assert (int(found.columns[0]), int(found.rows[0])) == (valid_columns, valid_rows)


def test_attention_pool(pool):
    assert_close(pool(seeded("k/pool/x", (3, 128, 7, 7))), "pool/exact_direct")


@pytest.mark.parametrize("kind", ["cheap", "exact", "exact_double"])
def test_region_embeddings(kind, pool):
    features, boxes = seeded("k/pool/map", (2, 128, 9, 12)), pooling.boxes_of_images(golden("pool/boxes"), cells(0))
    if kind == "cheap":
        embeddings = pooling.cheap_embeddings(pool, features, boxes)
    elif kind == "exact":
        embeddings = pool(pooling.roi_align(features, boxes, 7, 1.0, 0, True))
    else:
        encoder = RegionEncoder(RegionPromptHead(grid=7).pooler, torch.nn.AvgPool2d(2), pool)
        embeddings = encoder.encode([features], [Boxes(own) for own in boxes])
    assert_close(F.normalize(embeddings, dim=1).reshape(2, 12, 64), f"pool/{kind}")


def test_cheap_pooling_with_the_mean_token_is_exact_inside_the_image(pool):
    features = seeded("k/pool/map", (2, 128, 9, 12))
    boxes = [torch.tensor([[1.0, 1.0, 8.0, 7.0], [2.5, 0.5, 11.0, 8.0]]), torch.tensor([[3.0, 2.0, 5.0, 6.0]])]
    exact = pool(pooling.roi_align(features, boxes, 7, 1.0, 0, True))
    cheap = pooling.cheap_embeddings(pool, features, boxes, with_mean_token=True)
    torch.testing.assert_close(cheap, exact, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def anchor_embeddings(pool):
    boxes = value("query_embed.weight", (50, 4), "k").sigmoid().expand(2, -1, -1)
    assert_close(boxes[0], "pre/anchors")
    features = seeded("k/pre/layer4", (2, 128, 9, 12))
    embeddings = pooling.cheap_embeddings(pool, features, pooling.boxes_of_images(boxes, cells(0)))
    return F.normalize(embeddings, dim=1).unflatten(0, (2, 50)).detach()


def test_anchors_are_matched_with_classes(anchor_embeddings):
    assert_close(anchor_embeddings, "pre/features")
    text = text_embeddings("k_65", 65, 64)
    assert_close(anchor_embeddings @ text.T, "pre/cosine")
    novel = torch.zeros(65, dtype=torch.bool)
    novel[golden("pre/novel_index_65")] = True
    assert_close(prematching.match_classes(anchor_embeddings, text), "pre/classes_factor1")
    classes = prematching.match_classes(anchor_embeddings, text, prematching.NovelPrior(novel, 8.0))
    assert_close(classes, "pre/classes_factor8")
    project = fill(MLP(64, 128, 256), "text_proj.", "k")
    assert_close(project(text)[classes], "pre/content_factor8")


def test_halves_of_the_classes_are_matched_apart(anchor_embeddings):
    text, second = text_embeddings("k_65", 65, 64), golden("split/in_second_half").bool()
    classes = prematching.match_halves(anchor_embeddings, text, second)
    assert_close(classes, "split/classes")
    assert_close(fill(MLP(64, 128, 256), "text_proj.", "k")(text)[classes], "split/content")


def test_iterations_that_split_classes_are_the_published_ones():
    split = [prematching.draw_split(iteration, 0.2) for iteration in range(100)]
    assert split == golden("split_decision/split").bool().tolist()


def test_boxes_objectness_and_scores():
    states, references = seeded("k/pre/hs", (6, 2, 50, 256)), golden("score/reference")
    heads = [fill(MLP(256, 256, 256, 4), f"transformer.decoder.bbox_embed.{layer}.", "k") for layer in range(6)]
    assert_close(predict_boxes(heads, Decoded(states, references)), "score/boxes")
    objectness = fill(torch.nn.Linear(256, 1), "objectness_embed.", "k")(states[-1])[..., 0]
    assert_close(objectness, "score/objectness")
    cosines = golden("score/cosine")
    probabilities = (100 * F.pad(cosines, (0, 1))).softmax(dim=-1)[..., :-1]
    scores = ProbabilityTimesObjectness()(probabilities, golden("score/objectness")[..., None])
    assert_close(encodings.logit(scores, 1e-5), "score/logits")


@pytest.fixture(scope="module")
def transformer():
    return fill(DABTransformer(3, 6, 256, 8, 1024, 0.1), "transformer.").eval()


def test_encoder(transformer):
    tokens, position = seeded("k/enc/src", (2, 30, 256)), seeded("k/enc/pos", (2, 30, 256), 0.7)
    padding = golden("enc/key_padding_mask").bool()
    assert_close(transformer.encoder.layers[0](tokens, position, padding), "enc/layer0_out")
    assert_close(transformer.encoder(tokens, position, padding), "enc/out")


def test_decoder(transformer):
    memory, position = seeded("k/dec/memory", (2, 30, 256)), seeded("k/dec/pos", (2, 30, 256), 0.7)
    content, padding = seeded("k/dec/content", (2, 20, 256)), golden("enc/key_padding_mask").bool()
    decoded = transformer.decoder(content, golden("dec/anchors_logit"), memory, position, padding)
    assert_close(decoded.states, "dec/hs")
    assert_close(decoded.references, "dec/references")


def match_case(case):
    images = sum(f"match/{case}/image{i}/gt_boxes" in UNITS for i in range(4))
    targets = [
        Targets(golden(f"match/{case}/image{i}/gt_boxes"), golden(f"match/{case}/image{i}/gt_labels"))
        for i in range(images)
    ]
    layers = [
        LayerOutput(
            golden(f"match/{case}/layer{layer}/logits")[..., 0].clone().requires_grad_(),
            golden(f"match/{case}/layer{layer}/boxes").clone().requires_grad_(),
        )
        for layer in range(3)
    ]
    return layers, golden(f"match/{case}/query_classes"), targets


@pytest.mark.parametrize("case", ["a", "b", "c", "none"])
def test_matching_and_losses(case):
    layers, classes, targets = match_case(case)
    matcher = HungarianMatcher()
    for number, layer in enumerate(layers):
        pairs = matcher.match(layer, classes, targets)
        for image, (target, own) in enumerate(zip(targets, pairs, strict=True)):
            prefix = f"match/{case}/layer{number}/image{image}"
            logits, boxes = layer.logits[image], layer.boxes[image]
            if f"{prefix}/cost" in UNITS:
                assert_close(matcher.cost(logits, boxes, target), f"{prefix}/cost")
                restricted = matcher.restricted_cost(logits, boxes, classes[image], target)
                assert_close(restricted, f"{prefix}/restricted_cost")
            assert sorted(own.tolist()) == sorted(golden(f"{prefix}/pairs").reshape(-1, 2).tolist())
    losses, _ = LocalizerLosses(matcher)(layers, classes, targets)
    names = {"loss_objectness": ("loss_ce", 2), "loss_l1": ("loss_bbox", 5), "loss_giou": ("loss_giou", 2)}
    for name, (published, weight) in names.items():
        for suffix in ("", "_0", "_1"):
            assert_close(losses[name + suffix] / weight, f"match/{case}/losses/{published}{suffix}")
    total = sum(losses.values())
    assert_close(total, f"match/{case}/losses/total")
    total.backward()
    for number, layer in enumerate(layers):
        assert_close(layer.logits.grad[..., None], f"match/{case}/layer{number}/grad_logits")
        boxes = layer.boxes.grad if layer.boxes.grad is not None else torch.zeros_like(layer.boxes)
        assert_close(boxes, f"match/{case}/layer{number}/grad_boxes")


def test_attention_with_little_memory_has_the_same_bits(monkeypatch):
    inputs = [torch.randn(2, 12, 256), torch.randn(2, 12, 256), torch.zeros(2, 12, dtype=torch.bool)]
    content, anchors = torch.randn(2, 5, 256), torch.randn(2, 5, 4)
    torch.manual_seed(1)
    module = DABTransformer(1, 2, 256, 8, 32, 0.3).train()
    results = []
    for limit in (2**22, 0):
        monkeypatch.setattr("regionclip.methods.cora.transformer.LARGE_MAP", limit)
        module.zero_grad()
        torch.manual_seed(2)
        memory = module.encoder(*inputs)
        states = module.decoder(content, anchors, memory, inputs[1], inputs[2]).states
        states.square().sum().backward()
        results.append(
            [states.detach(), *(weight.grad.clone() for weight in module.parameters() if weight.grad is not None)]
        )
    assert len(results[0]) > 20
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert not torch.equal(results[0][0], module.decoder(content, anchors, memory, inputs[1], inputs[2]).states)
