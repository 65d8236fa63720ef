"""RAL in the training of RegionCLIP's detector: gradients, draws, resumption, several processes, bad input."""

from dataclasses import replace

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.config.training_checks import training_problems
from regionclip.data.class_lists import parse_names
from regionclip.data.datasets import builtin  # noqa: F401
from regionclip.engine.class_names import are_same_labels
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.retrieval_augmentation.loss import HingeSettings, RetrievalAugmentedLoss
from regionclip.modeling.retrieval_augmentation.negatives import (
    NO_WORD,
    NegativeStore,
    read_negative_words,
    write_negative_words,
)
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.training import (
    assert_a_killed_training_ends_with_the_same_bits,
    logged,
    train,
    train_in_processes,
    training_config,
    write_images,
)
from tests.methods.ralf.stores import write_regions, write_store
from tests.methods.ralf.tiny import CONFIG, OVERRIDES

NAMES = ("person", "car", "dog")
LOSSES = ("loss_hard_negatives", "loss_easy_negatives")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with images, annotations, class embeddings and negative words."""
    folder = tmp_path_factory.mktemp("ralf")
    write_images(folder)
    write_store(folder / "store.safetensors", NAMES, load_class_embeddings(folder / "embeddings.pth"))
    return folder


def settings(world, **overrides):
    return {
        "MODEL__RALF__RAL__ENABLED": True,
        "MODEL__RALF__RAL__STORE": str(world / "store.safetensors"),
        "MODEL__RALF__RAL__CLASSES": "person,car,dog",
        **overrides,
    }


def config(world, **overrides):
    return training_config(world, world / "unused", **settings(world, **overrides))


def batch(count=2):
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 90, 80], [30, 20, 60, 90], [0, 0, 40, 40]])[:count])
    target.gt_classes = torch.tensor([1, 0, 2])[:count]
    pixels = torch.randint(0, 255, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [{"image": pixels, "instances": target, "seed": 5, "height": 96, "width": 128}]


def losses_of(model, inputs):
    with EventStorage():
        return model.train()(inputs)


def test_the_gradient_reaches_exactly_what_the_config_trains(world):
    model = build_model(config(world))
    fill_deterministic(model)
    losses = losses_of(model, batch())
    sum(losses[name] for name in LOSSES).backward()
    reached = {key for key, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    predictor = {key for key in trained if key.startswith("roi_heads.box_predictor.")}
    # A key's bias adds the same to all scores of the attention pool: its gradient is 0 up to rounding.
    assert trained - predictor - reached <= {"backbone.attnpool.k_proj.bias"}
    assert reached <= trained and not reached & predictor
    assert any(key.startswith("backbone.layer2.") for key in reached)
    assert not any(key.startswith(("backbone.conv1", "backbone.layer1")) for key in trained)


def test_losses_are_added_and_add_no_weights(world):
    plain, with_losses = (build_model(config(world, MODEL__RALF__RAL__ENABLED=enabled)) for enabled in (False, True))
    assert plain.state_dict().keys() == with_losses.state_dict().keys()
    fill_deterministic(plain)
    with_losses.load_state_dict(plain.state_dict())
    expected, found = (losses_of(model, batch()) for model in (plain, with_losses))
    assert found.keys() - expected.keys() == set(LOSSES)
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())


def test_draws_depend_on_the_seed_of_the_image_alone(world):
    model = build_model(config(world, MODEL__RALF__RAL__NUM_SAMPLES=4))
    fill_deterministic(model)
    first, again = (losses_of(model, batch())[LOSSES[1]] for _ in range(2))
    other = losses_of(model, [{**batch()[0], "seed": 6}])[LOSSES[1]]
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_batch_without_objects_has_losses_of_zero(world):
    losses = losses_of(build_model(config(world)), batch(0))
    assert [float(losses[name]) for name in LOSSES] == [0, 0]
    assert all(losses[name].requires_grad for name in LOSSES)  # other processes wait for the box head's gradients


def test_a_class_with_few_words_takes_all_of_them(world):
    store = NegativeStore(read_negative_words(world / "store.safetensors"), range(3))
    drawn = store.draw(torch.tensor([0, 2]), 10, torch.Generator().manual_seed(0))
    assert len(set(drawn["hard"][0].tolist())) == 10
    assert sorted(drawn["hard"][1].tolist()) == [NO_WORD] * 7 + [0, 1, 2]
    words = store.words[store.lists["hard"][2, :3].long()].float()
    expected = torch.nn.functional.normalize(words, dim=1).mean(dim=0)
    torch.testing.assert_close(store.negatives(torch.tensor([0, 2]), drawn).hard[1], expected)


def test_a_class_without_words_has_no_loss(world):
    content = read_negative_words(world / "store.safetensors")
    content.easy[1] = NO_WORD
    loss = RetrievalAugmentedLoss(NegativeStore(content, range(3)), HingeSettings(), 10)
    regions = deterministic_text_embeddings("regions", 1, 32).requires_grad_()
    target = Instances((96, 128), gt_boxes=Boxes(torch.zeros(1, 4)), gt_classes=torch.tensor([1]))
    losses = loss(lambda boxes: regions, [target], [{"seed": 1}])
    assert [float(losses[name]) for name in LOSSES] == [0, 0]


def test_two_processes_train_as_one(world, tmp_path):
    same = {"INPUT__MIN_SIZE_TRAIN": "(64,)", "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 3}
    same["MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE"] = 8
    alone, together = (
        train_in_processes(count, world, tmp_path / str(count), **settings(world, **same)) for count in (1, 2)
    )
    for name in LOSSES:
        assert len(alone[name]) == 3 and max(alone[name]) > 0
        assert alone[name] == pytest.approx(together[name], abs=1e-5, rel=1e-5), name


def test_a_killed_training_ends_with_the_same_bits(world, tmp_path):
    assert_a_killed_training_ends_with_the_same_bits(world, tmp_path, **settings(world, SOLVER__MAX_ITER=12))


def other_encoder(world):
    """Write a store of another text encoder with embeddings of the same width."""
    path = world / "other.safetensors"
    return str(write_store(path, NAMES, deterministic_text_embeddings("another encoder", 3, 32), clip="RN50"))


def other_width(world):
    path = world / "wide.safetensors"
    return str(write_store(path, NAMES, deterministic_text_embeddings("wide", 3, 64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda world: {"STORE": ""}, r"RAL.STORE: expected a file of negative words, got none. Fix: build it with"),
        (lambda world: {"STORE": "absent.safetensors"}, "no such file"),
        (lambda world: {"STORE": str(world / "embeddings.pth")}, "a file of negative words, got another file"),
        (
            lambda world: {"STORE": other_width(world)},
            "expected width 32, of the detector's text embeddings, got width 64",
        ),
        (
            lambda world: {"STORE": other_encoder(world)},
            r"the text encoder of .*, got RN50: class embeddings have a mean",
        ),
        (lambda world: {"CLASSES": "person,unicorn,dog"}, "negative words of each trained class, got none of unicorn"),
        (lambda world: {"CLASSES": "person,car"}, "expected 3 names, one for each row of .*, got 2 names: person, car"),
        (lambda world: {"NUM_SAMPLES": 0}, "NUM_SAMPLES: expected a whole number, at least 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_error(world, changes, message):
    cfg = config(world, **{f"MODEL__RALF__RAL__{key}": value for key, value in changes(world).items()})
    with pytest.raises(UserError, match=message):
        check_config(cfg)


def test_training_needs_class_names(world):
    problems = list(training_problems(config(world, MODEL__RALF__RAL__CLASSES="")))
    assert [problem.what for problem in problems] == ["MODEL.RALF.RAL.CLASSES"]


def test_detectors_without_region_embeddings_are_refused(world):
    cfg = config(world, MODEL__CLIP__USE_TEXT_EMB_CLASSIFIER=False)
    with pytest.raises(UserError, match=r"MODEL.RALF.RAL.ENABLED: expected a classifier of text embeddings"):
        check_config(cfg)


def detpro_settings(world, **overrides):
    model = {key.replace(".", "__"): value for key, value in OVERRIDES.items() if key.startswith("MODEL.")}
    own = {"BASE_CLASSES": "person,car,dog", "REGIONS": str(world / "regions")}
    return {
        "config": CONFIG,
        **model,
        **settings(world, MODEL__RALF__RAL__CLASSES=""),
        **{f"MODEL__RALF__{key}": value for key, value in own.items()},
        "MODEL__MASK_ON": True,
        "MODEL__CLIP__TEXT_EMB_PATH": str(world / "named.safetensors"),
        "MODEL__CLIP__OPENSET_TEST_TEXT_EMB_PATH": "",
        "MODEL__CLIP__OFFLINE_RPN_CONFIG": "",
        "MODEL__CLIP__CROP_REGION_TYPE": "",
        "DATALOADER__SAMPLER_TRAIN": "TrainingSampler",
        "DATASETS__TEST": "()",
        "SOLVER__BASE_LR": 0.01,
        "SOLVER__STEPS": "()",
        **overrides,
    }


@pytest.mark.slow
def test_detpro_trains_on_stored_regions_and_resumes_with_the_same_bits(world, tmp_path):
    write_regions(world / "regions", [f"{i}.png" for i in range(8)])
    rows = load_class_embeddings(world / "embeddings.pth")
    Vocabulary(NAMES, rows, torch.arange(3)).save(world / "named.safetensors")
    assert_a_killed_training_ends_with_the_same_bits(world, tmp_path, **detpro_settings(world, SOLVER__MAX_ITER=10))
    wanted = {*LOSSES, "loss_cls", "loss_box_reg", "loss_mask", "loss_distill", "loss_rpn_cls", "loss_rpn_loc"}
    assert wanted <= logged(tmp_path / "whole")[-1].keys()
    other = detpro_settings(world, MODEL__RALF__REGIONS=str(world))
    with pytest.raises(UserError, match="a folder of region features, got no index"):
        train(world, tmp_path / "bad", **other)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"MODEL__RALF__RAL__CLASSES": "dog,car,person"}, "MODEL.RALF.RAL.CLASSES"),
        ({"MODEL__RALF__RAL__CLASSES": "person,car"}, "MODEL.RALF.RAL.CLASSES"),
    ],
)
def test_labels_are_the_classes_of_the_dataset_in_their_order(world, overrides, key):
    problems = list(training_problems(config(world, **overrides)))
    assert [problem.what for problem in problems] == [key]
    assert "in their order: person, car, dog" in problems[0].expected


def test_labels_are_the_rows_of_named_embeddings_in_their_order(world):
    rows = load_class_embeddings(world / "embeddings.pth")
    Vocabulary(NAMES, rows, torch.arange(3)).save(world / "in_order.safetensors")
    embeddings = {"MODEL__CLIP__TEXT_EMB_PATH": str(world / "in_order.safetensors")}
    check_config(config(world, **embeddings))
    with pytest.raises(UserError, match=r"expected 3 names, .*in its order, got 3 names: dog, car, person"):
        check_config(config(world, **embeddings, MODEL__RALF__RAL__CLASSES="dog,car,person"))


def test_a_store_of_other_weights_of_the_text_encoder_is_refused(world):
    rows = load_class_embeddings(world / "embeddings.pth")
    Vocabulary(NAMES, rows, torch.arange(3), text_weights="abc").save(world / "hashed.safetensors")
    store = replace(read_negative_words(world / "store.safetensors"), text_weights="def")
    write_negative_words(world / "hashed_store.safetensors", store)
    files = {"MODEL__CLIP__TEXT_EMB_PATH": str(world / "hashed.safetensors")}
    cfg = config(world, **files, MODEL__RALF__RAL__STORE=str(world / "hashed_store.safetensors"))
    with pytest.raises(UserError, match=r"expected text weights abc, those of .*, got text weights def"):
        check_config(cfg)


@pytest.mark.parametrize("names", ["dog,car,person", "person,car"])
def test_base_classes_of_detpro_are_those_of_the_dataset(world, names):
    cfg = training_config(world, world / "unused", **detpro_settings(world, MODEL__RALF__BASE_CLASSES=names))
    assert "MODEL.RALF.BASE_CLASSES" in [problem.what for problem in training_problems(cfg)]


def test_names_of_lvis_are_those_of_its_dataset():
    """Underscores and one other synonym do not count; classes at other places do."""
    names, classes = parse_names("lvis866"), list(MetadataCatalog.get("lvis_v1_train").thing_classes)
    assert are_same_labels(names, classes)
    assert not are_same_labels([names[1], names[0], *names[2:]], classes)
    assert not are_same_labels(names[:-1], classes)
    assert not are_same_labels([f"other {name}" for name in names], classes)


@pytest.mark.parametrize(
    "change",
    [
        lambda store: replace(store, hard=torch.full_like(store.hard, 99)),
        lambda store: replace(store, easy=torch.full_like(store.easy, -7)),
        lambda store: replace(store, easy=store.easy.flip(1)),
        lambda store: replace(store, hard=store.hard[:, :0]),
        lambda store: replace(store, words=store.words * float("nan")),
        lambda store: replace(store, names=store.names[:2]),
    ],
)
def test_damaged_stores_are_one_error(world, tmp_path, change):
    write_negative_words(tmp_path / "bad.safetensors", change(read_negative_words(world / "store.safetensors")))
    with pytest.raises(UserError, match="lists that do not fit the words"):
        read_negative_words(tmp_path / "bad.safetensors")
