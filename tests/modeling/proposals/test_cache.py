"""Proposals on disk: those of the RPN, of nobody else, and asked for once."""

import json

import pytest
import torch

from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.proposals import cache as proposal_cache
from regionclip.modeling.proposals.cache import MANIFEST, CachedProposals, describe_rpn, flush_proposals
from regionclip.modeling.proposals.resized import ResizedProposals
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import OLN_YAML
from tests.helpers.paths import DATA
from tests.helpers.training import differing, final_state, logged, train, training_config, write_images

STEADY = {"INPUT__MIN_SIZE_TRAIN": "(64,)", "SOLVER__MAX_ITER": 24, "DATASETS__TEST": "()", "SOLVER__STEPS": "()"}
"""Eight images of one size, landscape or portrait, flipped or not: 16 entries, seen three times."""

BOX_HEAD = """  ROI_HEADS:
    IN_FEATURES: ["res4"]
  ROI_BOX_HEAD:
    POOLER_RESOLUTION: 4
    NUM_FC: 1
    FC_DIM: 16
"""
"""Second stage of an OLN."""


@pytest.fixture
def world(tmp_path):
    write_images(tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def detector(world, tmp_path):
    def build(**overrides):
        cfg = training_config(world, tmp_path / "out", MODEL__CLIP__PROPOSAL_CACHE=tmp_path / "cache", **overrides)
        model = build_model(cfg).eval()
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return model

    return build


def images():
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (64, 96), (96, 64)]
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return [{"image": image, "image_id": i} for i, image in enumerate(images)]


def same(proposals, others):
    pairs = list(zip(proposals, others, strict=True))
    return all(
        torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        and torch.equal(a.objectness_logits, b.objectness_logits)
        and a.image_size == b.image_size
        for a, b in pairs
    )


def counting(model):
    """Count the images that the RPN looks at."""
    source, calls = model.proposal_source, []
    propose = source.rpn.propose

    def counted(inputs, device):
        calls.extend(inputs)
        return propose(inputs, device)

    source.rpn.propose = counted
    return calls


def test_entries_are_what_the_rpn_says_of_each_image(detector):
    model = detector()
    source, device = model.proposal_source, torch.device("cpu")
    expected = [source.rpn.propose([image], device)[0] for image in images()]
    assert all(len(proposals) for proposals in expected)
    assert isinstance(source, CachedProposals)
    assert same(source.propose(images(), device), expected)
    source.flush()
    again = detector()
    calls = counting(again)
    assert same(again.proposal_source.propose(images(), device), expected)
    assert not calls


def test_other_pixels_or_sizes_are_other_entries(detector):
    model = detector()
    calls = counting(model)
    (image, *_) = images()
    changed = image | {"image": image["image"].clone()}
    changed["image"][0, 0, 0] += 1
    flipped = image | {"image": image["image"].flip(2)}
    for one in (image, changed, flipped, image, flipped):
        model.proposal_source.propose([one], torch.device("cpu"))
    assert len(calls) == 3


def other_weights(model):
    with torch.no_grad():
        model.offline_proposal_generator.rpn_head.objectness_logits.bias += 1


@pytest.mark.parametrize(
    ("overrides", "change", "what"),
    [
        ({}, other_weights, "weights"),
        ({"MODEL__CLIP__OFFLINE_RPN_NMS_THRESH": 0.5}, lambda model: None, "settings"),
        ({"MODEL__CLIP__OFFLINE_RPN_POST_NMS_TOPK_TEST": 7}, lambda model: None, "settings"),
    ],
)
def test_boxes_of_another_rpn_are_an_error(detector, overrides, change, what):
    first = detector()
    first.proposal_source.propose(images(), torch.device("cpu"))
    first.proposal_source.flush()
    second = detector(**overrides)
    change(second)
    with pytest.raises(UserError, match=f"PROPOSAL_CACHE .*: expected boxes of an RPN with {what}"):
        second.proposal_source.propose(images(), torch.device("cpu"))


def test_mixed_precision_finds_the_same_boxes(detector):
    model = detector()
    expected = model.proposal_source.propose(images(), torch.device("cpu"))
    model.proposal_source.flush()
    again = detector()
    again.proposal_source.folder = again.proposal_source.folder / "other"
    with torch.autocast("cpu", torch.bfloat16):
        assert same(again.proposal_source.propose(images(), torch.device("cpu")), expected)
    again.proposal_source.flush()
    assert same(again.proposal_source.propose(images(), torch.device("cpu")), expected)


def test_runs_that_share_a_folder_keep_each_others_shards(detector, tmp_path, monkeypatch):
    one, other, device = detector().proposal_source, detector().proposal_source, torch.device("cpu")
    first, second = one.propose(images()[:1], device), other.propose(images()[1:], device)
    open_file = proposal_cache.atomic_write

    def write(path):
        monkeypatch.setattr(proposal_cache, "atomic_write", open_file)
        other.flush()  # after the first has chosen a name, and before there is a file of it
        return open_file(path)

    monkeypatch.setattr(proposal_cache, "atomic_write", write)
    one.flush()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    again = detector()
    calls = counting(again)
    assert same(again.proposal_source.propose(images(), device), first + second)
    assert not calls


def test_of_two_new_rpns_one_comes_second(detector, tmp_path, monkeypatch):
    read, source = proposal_cache.read_json_file, detector().proposal_source

    def late(path):
        monkeypatch.setattr(proposal_cache, "read_json_file", read)
        other = detector(MODEL__CLIP__OFFLINE_RPN_NMS_THRESH=0.5).proposal_source
        other.propose(images()[:1], torch.device("cpu"))  # has the folder after this one saw it empty
        other.flush()
        return

    monkeypatch.setattr(proposal_cache, "read_json_file", late)
    with pytest.raises(UserError, match="PROPOSAL_CACHE"):
        source.propose(images(), torch.device("cpu"))


def test_shards_of_unknown_origin_and_partial_shards_are_errors(detector, tmp_path):
    model = detector()
    model.proposal_source.propose(images(), torch.device("cpu"))
    model.proposal_source.flush()
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    manifest = tmp_path / "cache" / MANIFEST
    content = manifest.read_text()
    manifest.unlink()
    with pytest.raises(UserError, match=f"expected a file {MANIFEST}"):
        detector().proposal_source.propose(images(), torch.device("cpu"))
    manifest.write_text(content)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="expected a shard of proposals"):
        detector().proposal_source.propose(images(), torch.device("cpu"))


def test_later_epochs_skip_the_rpn_and_a_resumed_run_has_the_same_bits(world, tmp_path):
    outputs = [tmp_path / name for name in ("first", "second", "resumed")]
    caches = [tmp_path / f"{output.name}_cache" for output in outputs]

    def run(output, cache, **changes):
        return train(world, output, MODEL__CLIP__PROPOSAL_CACHE=cache, **STEADY | changes)[0]

    run(outputs[0], caches[0])
    entries = len(CachedProposals(build_source(world, caches[0]).rpn, caches[0])._open())
    assert 8 < entries <= 16, "48 images were looked at"
    second = run(outputs[1], caches[0])
    calls = second.model.proposal_source._written
    assert calls == 0, "everything was on disk"
    assert differing(final_state(outputs[0])["model"], final_state(outputs[1])["model"]) == []
    run(outputs[2], caches[2], SOLVER__MAX_ITER=13)
    (outputs[2] / "model_final.pth").rename(outputs[2] / "ignored")
    (outputs[2] / "checkpoints.json").unlink()
    (outputs[2] / "last_checkpoint").write_text("model_0000006.pth")
    run(outputs[2], caches[2])
    assert differing(final_state(outputs[0])["model"], final_state(outputs[2])["model"]) == []
    assert logged(outputs[0]) == logged(outputs[2])


def test_an_evaluation_shares_the_folder_of_its_training(detector):
    """An evaluation folds the weights of the RPN, which changes no box."""
    first, device = detector(), torch.device("cpu")
    expected = first.proposal_source.propose(images(), device)
    first.proposal_source.flush()
    prepared = detector().prepare_for_inference()
    calls = counting(prepared)
    assert same(prepared.proposal_source.propose(images(), device), expected)
    assert not calls
    rounded = detector().prepare_for_inference("bfloat16", "res5", "keep")
    with pytest.raises(UserError, match=r"expected boxes of an RPN with precision bfloat16, .*got precision None"):
        rounded.proposal_source.propose(images(), device)


def test_other_anchors_are_another_rpn(detector):
    first = detector()
    first.proposal_source.propose(images(), torch.device("cpu"))
    other = detector()
    for cell in other.offline_proposal_generator.anchor_generator.cell_anchors:
        cell.mul_(2)
    with pytest.raises(UserError, match="expected boxes of an RPN with anchors"):
        other.proposal_source.propose(images(), torch.device("cpu"))


def test_folders_of_earlier_versions_are_taken(detector, tmp_path):
    model, device = detector(), torch.device("cpu")
    expected = model.proposal_source.propose(images(), device)
    model.proposal_source.flush()
    manifest = json.loads((tmp_path / "cache" / MANIFEST).read_text())
    del manifest["anchors"]
    (tmp_path / "cache" / MANIFEST).write_text(json.dumps(manifest))
    again = detector()
    calls = counting(again)
    assert same(again.proposal_source.propose(images(), device), expected)
    assert not calls


def test_boxes_of_oln_are_kept_too(detector, tmp_path):
    text = (DATA / "tiny_rpn.yaml").read_text().replace("  RPN:", OLN_YAML)
    model, mark, rest = text.replace("BOX_ON: False", "BOX_ON: True").partition("INPUT:")
    text = model + BOX_HEAD + mark + rest
    (tmp_path / "oln.yaml").write_text(text)
    model = detector(MODEL__CLIP__OFFLINE_RPN_CONFIG=tmp_path / "oln.yaml", MODEL__CLIP__RPN_SCORE_FUSION="sigmoid")
    source, device = model.prepare_for_inference().proposal_source, torch.device("cpu")
    expected = [source.rpn.propose([image], device)[0] for image in images()]
    assert same(source.propose(images(), device), expected)
    assert set(json.loads((tmp_path / "cache" / MANIFEST).read_text())) == {"weights", "settings", "anchors"}
    source.rpn.proposal_generator.box.transform.weights = (1.0, 1.0, 1.0, 1.0)
    other = CachedProposals(source.rpn, tmp_path / "cache")
    with pytest.raises(UserError, match="expected boxes of an RPN with anchors"):
        other.propose(images(), device)


def test_another_version_of_the_package_shares_the_folder(detector, monkeypatch):
    first = detector()
    first.proposal_source.propose(images(), torch.device("cpu"))
    monkeypatch.setattr("regionclip.__version__", "9.9.9")
    assert describe_rpn(first.proposal_source.rpn) == describe_rpn(detector().proposal_source.rpn)
    detector().proposal_source.propose(images(), torch.device("cpu"))


def test_entries_do_not_depend_on_the_padding_of_a_batch(detector):
    model, (image, *_) = detector(), images()
    expected = model.proposal_source.rpn.propose([image], torch.device("cpu"))
    model.offline_preprocessor.smallest = (128, 256)
    assert same(model.proposal_source.propose([image], torch.device("cpu")), expected)
    assert model.offline_preprocessor.smallest == (128, 256)


def test_pending_entries_of_resized_images_are_written(detector, tmp_path):
    model = detector()
    model.proposal_source = ResizedProposals(model.proposal_source, 64, 96)
    model.proposal_source.propose(images(), torch.device("cpu"))
    flush_proposals(model)
    assert list((tmp_path / "cache").glob("*.safetensors"))


def build_source(world, cache):
    cfg = training_config(world, world / "out", MODEL__CLIP__PROPOSAL_CACHE=cache)
    torch.manual_seed(cfg.SEED)
    return build_model(cfg).proposal_source
