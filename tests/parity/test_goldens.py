"""Parity with the published system on deterministic weights; `compare` holds the stated tolerances."""

import copy
import functools
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regionclip.clip.architectures import get_architecture
from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.clip.text_encoder import TextEncoder, Tokenizer, tokenize
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.modeling.losses.classification import build_classification_loss
from regionclip.modeling.postprocess import (
    DetectionSelector,
    GeometricMeanWithLogit,
    ProbabilityOnly,
    report_probability_as_upstream,
    report_score,
)
from regionclip.modeling.suppression import HardSuppression, SoftSuppression
from regionclip.ops import soft_nms
from regionclip.testing.deterministic import (
    deterministic_state_dict,
    deterministic_text_embeddings,
    fill_deterministic,
    uniform,
)
from tests.helpers.detectors import DEVICE
from tests.helpers.goldens import UNITS, assert_agrees, best_words, photo
from tests.helpers.paths import GOLDENS

SEPARATION = ("MODEL.ROI_HEADS.SOFT_NMS_CLASS_SEPARATION", "upstream")
FEATURE_STRIDE, POOLED_STRIDE = 97, 9973
"""The goldens keep every so many-th value of large maps."""


def golden_proposals(golden, prefix, size):
    """Return the proposals of the golden itself, so that ties in objectness cannot swap."""
    proposals = Instances(size)
    proposals.proposal_boxes = Boxes(torch.from_numpy(golden[f"{prefix}prop_boxes"]))
    proposals.objectness_logits = torch.from_numpy(golden[f"{prefix}prop_obj"])
    return proposals.to(DEVICE)


def statistics(name, value, stride):
    value = value.cpu()
    return {
        f"{name}_shape": np.array(value.shape),
        f"{name}_mean": value.double().mean().numpy(),
        f"{name}_std": value.double().std(correction=0).numpy(),
        f"{name}_sample": value.flatten()[::stride].numpy(),
    }


def detections(instances):
    instances = instances.to("cpu")
    return {
        "det_boxes": instances.pred_boxes.tensor.numpy(),
        "det_scores": instances.scores.numpy(),
        "det_classes": instances.pred_classes.numpy(),
    }


@torch.no_grad()
def run_head(model, golden, inputs, prefix, images):
    """Run one pass and return what the golden recorded of it, by golden key, and what inference needs."""
    batch = [photo(inputs, image) for image in images]
    preprocessed = model.preprocessor([item["image"] for item in batch])
    features = model.backbone(preprocessed.tensor)
    sizes = preprocessed.image_sizes
    if f"{prefix}{images[0]}/prop_boxes" in golden:
        proposals = [golden_proposals(golden, f"{prefix}{i}/", size) for i, size in zip(images, sizes, strict=True)]
    else:
        proposals = model.proposal_source.propose(batch, model.device)
    heads = model.roi_heads
    pooled = heads.pooler([features["res4"]], [p.proposal_boxes for p in proposals])
    embeddings = heads.encode(features, [p.proposal_boxes for p in proposals])
    logits, deltas = heads.box_predictor(embeddings)
    results, _ = heads.box_predictor.inference((logits, deltas), proposals)
    results = rescale(results, batch)
    computed, start = {}, 0
    for n, image in enumerate(images):
        key, rows = f"{prefix}{image}/", slice(start, start + len(proposals[n]))
        start = rows.stop
        computed |= {f"{key}image_hw": np.array(sizes[n])}
        computed |= {f"{key}{k}": v for k, v in statistics("res4", features["res4"][n], FEATURE_STRIDE).items()}
        computed |= {f"{key}{k}": v for k, v in statistics("pooled", pooled[rows], POOLED_STRIDE).items()}
        for name, value in (("feats", embeddings), ("logits", logits)):
            kept = golden[f"{key}{name}_rows"]
            computed |= {f"{key}{name}_rows": kept, f"{key}{name}": value[rows][kept].cpu().numpy()}
        computed[f"{key}deltas"] = deltas[rows].cpu().numpy()
        computed |= {f"{key}{k}": v for k, v in detections(results[n]).items()}
    return computed, (proposals, logits, deltas, batch)


def rescale(results, batch):
    """Scale detections to the original image, as the detector's own post-processing does."""
    return [detector_postprocess(r, item["height"], item["width"]) for r, item in zip(results, batch, strict=True)]


CASES = ("a_coco65_gt_rn50", "b_coco65_rpn_rn50", "d_ovd_openset_softnms")
PASSES = ((139,), (460229,), (217285,), (139, 460229))
"""Photos that went through the detector alone and together."""


def recorded(entry, variants=("",)):
    """Return (case, images, variant) for which the goldens hold `entry`."""
    return [
        pytest.param(case, images, variant, id="-".join([case[0], *map(str, images), *filter(None, [variant])]))
        for case in CASES
        for golden in [np.load(GOLDENS / f"{case}.npz")]
        for images in PASSES
        for variant in variants
        if f"{prefix_of(images)}{images[0]}/{variant}{entry}" in golden
    ]


def prefix_of(images):
    return "batch/" if len(images) > 1 else ""


@pytest.fixture(scope="module")
def detectors(golden_detector):
    return {case: golden_detector(case, *SEPARATION) for case in CASES}


@pytest.fixture(scope="module")
def prepared_detectors(detectors):
    """The same, rewritten for inference as the command lines do it."""
    return {case: (golden, prepare_for_inference(copy.deepcopy(model))) for case, (golden, model) in detectors.items()}


@pytest.fixture(scope="module")
def passes(detectors, golden_inputs):
    """Run a pass once for all tests that look at it."""

    @functools.cache
    def run(case, images):
        golden, model = detectors[case]
        return run_head(model, golden, golden_inputs, prefix_of(images), images)

    return run


@pytest.mark.parametrize(("case", "images", "variant"), recorded("image_hw"))
def test_detector_agrees(detectors, passes, case, images, variant):
    computed, _ = passes(case, images)
    assert_agrees(detectors[case][0], computed)


@pytest.mark.parametrize(("case", "images", "variant"), recorded("image_hw"))
def test_prepared_detector_agrees(prepared_detectors, golden_inputs, case, images, variant):
    golden, model = prepared_detectors[case]
    computed, _ = run_head(model, golden, golden_inputs, prefix_of(images), images)
    assert_agrees(golden, computed)


@torch.no_grad()
@pytest.mark.parametrize(("case", "images", "variant"), recorded("prop_boxes"))
def test_proposals_agree(detectors, golden_inputs, case, images, variant):
    golden, model = detectors[case]
    proposals = model.proposal_source.propose([photo(golden_inputs, image) for image in images], model.device)
    computed = {}
    for image, found in zip(images, [found.to("cpu") for found in proposals], strict=True):
        computed[f"{prefix_of(images)}{image}/prop_boxes"] = found.proposal_boxes.tensor.numpy()
        computed[f"{prefix_of(images)}{image}/prop_obj"] = found.objectness_logits.numpy()
    assert_agrees(golden, computed)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("image", [139, 460229])
def test_whole_detector_from_pixels_agrees(detectors, golden_inputs, case, image):
    golden, model = detectors[case]
    (output,) = model([photo(golden_inputs, image)])
    assert_agrees(golden, {f"{image}/{k}": v for k, v in detections(output["instances"]).items()})


THRESHOLDS = {
    "thr0.6/": {"score_threshold": 0.6},
    "thr0.25_all/": {"score_threshold": 0.25, "max_detections": None},
}


@pytest.mark.parametrize(("case", "images", "variant"), recorded("det_boxes", tuple(THRESHOLDS)))
def test_other_thresholds_agree(detectors, passes, case, images, variant):
    golden, model = detectors[case]
    _, passed = passes(case, images)
    assert_variant_agrees(golden, model, f"{images[0]}/{variant}", THRESHOLDS[variant], passed)


def soft(method, sigma=0.5, prune=0.001):
    return SoftSuppression(method, sigma, 0.5, prune, "upstream")


FUSED = {"fusion": GeometricMeanWithLogit()}
VARIANTS = {
    "soft_linear": {"suppression": soft("linear")},
    "soft_hard": {"suppression": soft("hard")},
    "soft_gauss_s0.3_p0.05": {"suppression": soft("gaussian", 0.3, 0.05)},
    "nms": {"suppression": HardSuppression(0.5)},
    "nms_mul_rpn": {"suppression": HardSuppression(0.5)} | FUSED,
    "nms_mul_rpn_vis": {"suppression": HardSuppression(0.5), "reported_score": report_probability_as_upstream} | FUSED,
    "soft_mul_rpn_vis": {"suppression": soft("gaussian"), "reported_score": report_probability_as_upstream} | FUSED,
    "nms_nodelta": {"suppression": HardSuppression(0.5)},
}


@pytest.mark.parametrize("image", [139, 460229])
def test_selection_variants_agree(detectors, passes, image):
    golden, model = detectors["d_ovd_openset_softnms"]
    _, passed = passes("d_ovd_openset_softnms", (image,))
    for tag, changes in VARIANTS.items():
        model.roi_heads.box_predictor.keep_proposal_boxes = tag == "nms_nodelta"
        assert_variant_agrees(golden, model, f"{image}/{tag}/", changes, passed)
    model.roi_heads.box_predictor.keep_proposal_boxes = False


def assert_variant_agrees(golden, model, prefix, changes, passed):
    proposals, logits, deltas, batch = passed
    predictor = model.roi_heads.box_predictor
    original = predictor.selector
    try:
        predictor.selector = replace(original, **changes)
        results, rows = predictor.inference((logits, deltas), proposals)
    finally:
        predictor.selector = original
    computed = {f"{prefix}{k}": v for k, v in detections(rescale(results, batch)[0]).items()}
    assert_agrees(golden, computed, prefix)
    if f"{prefix}keep" in golden:
        same = np.mean(golden[f"{prefix}keep"] == rows[0].cpu().numpy())
        assert same >= 0.98, f"{prefix}: only {same:.0%} of detections come from the recorded proposal"


@torch.no_grad()
@pytest.mark.parametrize("image", [139, 460229])
def test_region_features_agree(golden_detector, golden_inputs, image):
    golden, model = golden_detector("e_region_features", "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", "100")
    item = photo(golden_inputs, image)
    (proposals,) = model.proposal_source.propose([item], model.device)
    (features,) = model.encode_regions([item], [proposals])
    proposals, features = proposals.to("cpu"), features.cpu()
    scale = torch.tensor([item["width"], item["height"]] * 2) / torch.tensor(
        [proposals.image_size[1], proposals.image_size[0]] * 2
    )
    prefix = f"no_emb/{image}/"
    computed = {f"{prefix}boxes": (proposals.proposal_boxes.tensor * scale).numpy(), f"{prefix}feats": features.numpy()}
    assert_agrees(golden, computed)


@torch.no_grad()
@pytest.mark.parametrize("image", [139, 460229])
def test_features_of_detections_agree(golden_detector, embedding_file, golden_inputs, image):
    golden, model = golden_detector(
        "e_region_features",
        *("MODEL.CLIP.TEXT_EMB_PATH", embedding_file("lvis_1203", 1203, 1024)),
        *("MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST", "300", "TEST.DETECTIONS_PER_IMAGE", "100"),
        *("MODEL.CLIP.VIS", "True", "MODEL.CLIP.VIS_BEHAVIOUR", "upstream"),
    )
    item = photo(golden_inputs, image)
    proposals = model.proposal_source.propose([item], model.device)
    (features,) = model.encode_regions([item], proposals)
    predictions = model.roi_heads.box_predictor(features)
    results, (rows,) = model.roi_heads.box_predictor.inference(predictions, proposals)
    result = rescale(results, [item])[0].to("cpu")
    probabilities, features = predictions[0].softmax(dim=1)[rows].cpu(), features[rows].cpu()
    prefix = f"with_emb/{image}/"
    indices = best_words(golden, prefix, result.pred_boxes.tensor, result.pred_classes)
    computed = {
        f"{prefix}boxes": result.pred_boxes.tensor.numpy(),
        f"{prefix}classes": result.pred_classes.numpy(),
        f"{prefix}probs_of_class": probabilities.gather(1, result.pred_classes[:, None])[:, 0].numpy(),
        f"{prefix}probs_shape": np.array(probabilities.shape),
        f"{prefix}probs_top20": probabilities.gather(1, indices).numpy(),
        f"{prefix}probs_top20_idx": indices.numpy(),
        f"{prefix}feats": features.numpy(),
    }
    assert_agrees(golden, computed)


CONCEPTS = np.load(GOLDENS / "f_concept_features.npz")


def text_encoder(name):
    encoder = TextEncoder(get_architecture(name)).eval()
    container = torch.nn.Module()
    container.lang_encoder = encoder
    fill_deterministic(container)
    return encoder


def test_templates_and_tokens_agree():
    assert list(PROMPT_TEMPLATES) == json.loads(str(CONCEPTS["templates"]))
    tokenizer = Tokenizer()
    texts, ids = (json.loads(str(CONCEPTS[key])) for key in ("tok_texts", "tok_ids"))
    assert [tokenizer.encode(text) for text in texts] == ids
    concepts = json.loads(str(CONCEPTS["concepts"]))
    prompts = [fill_template(template, name) for name in concepts for template in PROMPT_TEMPLATES]
    np.testing.assert_array_equal(tokenize(prompts, tokenizer).reshape(5, 81, 77), CONCEPTS["tokens"])


@torch.no_grad()
@pytest.mark.parametrize(("name", "key"), [("RN50", "rn50"), pytest.param("RN50x4", "rn50x4", marks=pytest.mark.slow)])
def test_tokens_of_concepts_agree(name, key):
    """Token by token; features of concepts are compared where a user gets them, in test_concept_features.py."""
    encoder = text_encoder(name)
    tokens = torch.from_numpy(CONCEPTS["tokens"]).long()
    every_token = encoder.token_embeddings(tokens[0, :1])
    length = CONCEPTS[f"{key}/dog_first_all_tokens"].shape[1]
    computed = {
        f"{key}/dog_first3_eot": encoder(tokens[0, :3]).numpy(),
        f"{key}/dog_first_all_tokens": every_token[:, :length].numpy(),
    }
    assert_agrees(CONCEPTS, computed)
    listed = json.loads(str(CONCEPTS[f"{key}/text_keys"]))
    assert {f"lang_encoder.{k}": list(v.shape) for k, v in encoder.state_dict().items()} == listed


def unit(key):
    return torch.from_numpy(UNITS[key])


@torch.no_grad()
def test_attention_pools_agree():
    small = AttentionPool2d(grid=4, width=48, heads=6, output_dim=20)
    small.load_state_dict({key.removeprefix("attn_small/w/"): unit(key) for key in UNITS if "attn_small/w/" in key})
    computed = {"attn_small/y": small(unit("attn_small/x")).numpy()}
    for name in ("RN50", "RN50x4"):
        size = get_architecture(name)
        pool = AttentionPool2d(size.attention_grid, size.attention_width, size.attention_heads, size.embedding_dim)
        shapes = {f"backbone.attnpool.{key}": value.shape for key, value in pool.state_dict().items()}
        weights = deterministic_state_dict(shapes)
        pool.load_state_dict({key.removeprefix("backbone.attnpool."): value for key, value in weights.items()})
        computed[f"attn_{name.lower()}/y"] = pool(attention_input(name, size)).numpy()
    assert_agrees(UNITS, computed)
    in_double = small.double()(unit("attn_small/x").double())
    np.testing.assert_allclose(in_double, UNITS["attn_small/y_f64"], rtol=0, atol=1e-12)


def attention_input(name, size):
    key = f"attn_{name.lower()}/x"
    if key in UNITS:
        return unit(key)
    shape = (3, size.attention_width, size.attention_grid, size.attention_grid)
    return torch.from_numpy(2 * uniform(f"unit/attn/{name.lower()}/x", shape)).relu()


@torch.no_grad()
@pytest.mark.parametrize(("name", "key"), [("RN50", "text_rn50"), ("RN50x4", "text_rn50x4")])
def test_text_encoders_agree(name, key):
    encoder = text_encoder(name)
    ids = unit(f"{key}/ids")
    computed = {f"{key}/y": encoder(ids).numpy()}
    computed |= {f"{key}/{k}": v for k, v in statistics("full", encoder.token_embeddings(ids), FEATURE_STRIDE).items()}
    assert_agrees(UNITS, computed)


SOFT_NMS_CASES = sorted(key.removesuffix("/keep") for key in UNITS if key[:8] == "softnms/" and key[-5:] == "/keep")


@pytest.mark.parametrize("case", SOFT_NMS_CASES)
def test_soft_nms_is_bit_identical_in_upstream_mode(case):
    method, *numbers = case.removeprefix("softnms/").split("_")
    sigma, iou_threshold, prune = (float(number[1:]) for number in numbers)
    boxes, scores, classes = (unit(f"softnms/{name}") for name in ("boxes", "scores", "classes"))
    options = {"method": method, "sigma": sigma, "iou_threshold": iou_threshold, "prune_threshold": prune}
    keep, rescored = soft_nms(boxes, scores, classes, class_separation="upstream", **options)
    np.testing.assert_array_equal(keep, UNITS[f"{case}/keep"])
    np.testing.assert_array_equal(rescored, UNITS[f"{case}/scores"])
    keep, rescored = soft_nms(boxes, scores, classes, class_separation="exact", **options)
    np.testing.assert_array_equal(keep, UNITS[f"{case}/keep"])
    np.testing.assert_allclose(rescored, UNITS[f"{case}/scores"], atol=1e-6)


PLAIN = {"fusion": ProbabilityOnly(), "reported_score": report_score}
VIS = {"fusion": GeometricMeanWithLogit(), "reported_score": report_probability_as_upstream}
SELECTIONS = {
    "plain": (HardSuppression(0.5), 100, PLAIN),
    "mul": (HardSuppression(0.5), 100, PLAIN | FUSED),
    "mul_vis": (HardSuppression(0.3), 20, VIS),
    "soft": (soft("gaussian"), 100, PLAIN),
    "soft_mul_vis": (soft("gaussian"), 100, VIS),
    "all": (HardSuppression(0.5), None, PLAIN),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_selection_of_one_image_agrees(case):
    suppression, limit, options = SELECTIONS[case]
    # The recorded number of detections tells the threshold: 0.2 for the run without a limit.
    selector = DetectionSelector(0.2 if limit is None else 0.05, limit, suppression=suppression, **options)
    size = tuple(UNITS["inf/hw"].tolist())
    result, rows = selector(unit("inf/boxes"), unit("inf/probs"), unit("inf/obj"), size)
    computed = {f"inf/{case}/{k}": v for k, v in detections(result).items()}
    assert_agrees(UNITS, computed | {f"inf/{case}/keep": rows.numpy()})


LOSS_VARIANTS = {
    "ovd": {},
    "ovd/no_focal": {"focal_exponent": None},
    "ovd/no_focal_no_bgw": {"focal_exponent": None, "background_weight": None},
    "ovd/focal2_no_bgw": {"focal_exponent": 2.0, "background_weight": None},
}


def sampled_regions(golden, image):
    key = f"ovd/img{image}/"
    regions = Instances((320, 481))
    regions.proposal_boxes = Boxes(torch.from_numpy(golden[f"{key}sampled_boxes"]))
    regions.gt_boxes = Boxes(torch.from_numpy(golden[f"{key}gt_boxes"]))
    regions.gt_classes = torch.from_numpy(golden[f"{key}gt_classes"])
    return regions.to(DEVICE)


def test_training_losses_of_recorded_predictions_agree(golden_detector):
    golden, model = golden_detector("g_ovd_losses")
    predictor = model.train().roi_heads.box_predictor
    regions = [sampled_regions(golden, image) for image in (0, 1)]
    predictions = tuple(torch.from_numpy(golden[f"ovd/{name}"]).to(DEVICE) for name in ("logits", "deltas"))
    computed = {}
    for name, changes in LOSS_VARIANTS.items():
        settings = {"focal_exponent": 0.5, "background_weight": 0.2} | changes
        if changes:  # the first is that of the config
            predictor.classification_loss = build_classification_loss(**settings)
        with EventStorage() as storage:
            losses = predictor.losses(predictions, regions)
        computed |= {f"{name}/{k}": v.detach().cpu().numpy() for k, v in losses.items()}
        if name == "ovd":
            computed |= {f"ovd/storage/{k}": np.array(v[0]) for k, v in storage.latest().items()}
    for name, kind, beta in (("ovd/giou", "giou", 0.0), ("ovd/beta0.5", "smooth_l1", 0.5)):
        predictor.box_reg_loss_type, predictor.smooth_l1_beta = kind, beta
        with EventStorage():
            losses = predictor.losses(predictions, regions)
        computed[f"{name}/loss_box_reg"] = losses["loss_box_reg"].detach().cpu().numpy()
    assert_agrees(golden, computed)


def test_training_step_agrees(golden_detector, golden_inputs):
    golden, model = golden_detector("g_ovd_losses")
    batch = [photo(golden_inputs, image) for image in (139, 460229)]
    for n, image in enumerate(batch):
        image["instances"].gt_boxes = Boxes(torch.from_numpy(golden[f"ovd/img{n}/target_boxes"]))
        image["instances"].gt_classes = torch.from_numpy(golden[f"ovd/img{n}/target_classes"])
    with EventStorage() as storage:
        losses = model.train()(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    computed = {f"ovd/{name}": loss.detach().cpu().numpy() for name, loss in losses.items()}
    computed |= {f"ovd/storage/{name}": np.array(value[0]) for name, value in storage.latest().items()}
    computed["ovd/trainable"] = np.array(json.dumps(list(gradients)))
    computed["ovd/grad_norms"] = np.array([gradient.norm().item() for gradient in gradients.values()], np.float32)
    computed["ovd/n_params_total"] = np.array(len(list(model.parameters())))
    for name in {key.split("/")[2] for key in golden.files if key.startswith("ovd/grad/")}:
        found = statistics("grad", gradients[name], FEATURE_STRIDE)
        computed |= {f"ovd/grad/{name}/{key.removeprefix('grad_')}": value for key, value in found.items()}
    assert_agrees(golden, computed)


def test_deterministic_weights_have_the_published_checksums():
    probes = {
        "backbone.conv1.weight": ((32, 3, 3, 3), 0x80C8F16A),
        "backbone.layer1.0.conv1.weight": ((64, 64, 1, 1), 0x94525BB3),
        "backbone.layer1.0.bn3.weight": ((256,), 0x7418C5F4),
        "backbone.layer4.2.bn2.running_var": ((512,), 0x88546CEC),
        "backbone.attnpool.positional_embedding": ((50, 2048), 0xA983F5DF),
        "backbone.attnpool.q_proj.weight": ((2048, 2048), 0x198AEA8D),
        "offline_backbone.bottom_up.stem.conv1.weight": ((64, 3, 7, 7), 0x4FF7904B),
        "offline_backbone.fpn_output3.weight": ((256, 256, 3, 3), 0x49939AEA),
        "offline_proposal_generator.rpn_head.objectness_logits.bias": ((3,), 0x7DE15BED),
        "offline_proposal_generator.rpn_head.anchor_deltas.weight": ((12, 256, 1, 1), 0xB13EEC6B),
        "roi_heads.box_predictor.bbox_pred.weight": ((4, 1024), 0xD53B70D5),
        "lang_encoder.transformer.resblocks.3.attn.in_proj_weight": ((1536, 512), 0x2B7BA421),
    }
    weights = deterministic_state_dict({key: shape for key, (shape, _) in probes.items()})
    assert {key: zlib.crc32(value.numpy().tobytes()) for key, value in weights.items()} == {
        key: checksum for key, (_, checksum) in probes.items()
    }
    assert deterministic_text_embeddings("any", 3, 8).norm(dim=1).max() <= 1.5
