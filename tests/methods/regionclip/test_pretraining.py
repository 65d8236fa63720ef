"""Pretraining: its losses by the formulas, its gradients, its processes, and the whole way to a detector."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.config.training_checks import training_problems
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.engine.distributed import Place, free_port, join
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.losses.pretraining import mil_cross_entropy
from regionclip.modeling.proposals.generated_boxes import GridBoxes, RandomBoxes
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import TINY, flat
from tests.helpers.goldens import UNITS, assert_agrees
from tests.helpers.paths import DATA
from tests.helpers.pretraining import pretrain, pretraining_config, start_pretraining, write_world
from tests.helpers.training import differing, final_state


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    write_world(folder)
    return folder


def make_batch(count=4, seed=0, size=(64, 80)):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
            "tokens": torch.cat(
                [
                    torch.randint(1, 49000, (5 + i,), generator=generator),
                    torch.tensor([49407]),
                    torch.zeros(71 - i).long(),
                ]
            ),
            "image_id": str(i),
            "file_name": str(i),
            "seed": i,
        }
        for i in range(count)
    ]


def make_model(folder, **overrides):
    model = build_model(pretraining_config(folder, folder / "out", **overrides))
    fill_deterministic(model)
    return model.train()


@pytest.mark.parametrize("average", [0, 1])
@pytest.mark.parametrize("weighted", [0, 1])
def test_mil_cross_entropy_agrees(average, weighted):
    x = torch.from_numpy(UNITS["mil/x"]).requires_grad_()
    weights = torch.from_numpy(UNITS["mil/weights"]) if weighted else None
    loss = mil_cross_entropy(x, torch.from_numpy(UNITS["mil/target"]), weights, average_positives=bool(average)).mean()
    loss.backward()
    key = f"mil/avg{average}_w{weighted}"
    assert_agrees(UNITS, {f"{key}/loss": loss.detach().numpy(), f"{key}/grad": x.grad.numpy()})


def capture(module, name, seen):
    module.register_forward_hook(lambda _, __, output: seen.update({name: output.detach().double().numpy()}))


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("temperature", [0.01, 0.03])
def test_losses_are_those_of_the_formulas(world, some, temperature):
    """Independent float64 arithmetic on the embeddings that the encoders gave."""
    model = make_model(world, MODEL__CLIP__CLSS_TEMP=0.05, MODEL__CLIP__TEACHER_CLSS_TEMP=temperature)
    assert model.matching.teacher_temperature == temperature
    seen = {}
    capture(model.roi_heads, "student", seen)
    capture(model.teacher_backbone.attnpool, "teacher", seen)
    capture(model.lang_encoder, "text", seen)
    with EventStorage():
        model(make_batch())
    # Concepts that the teacher can tell apart: some of its own embeddings.
    teacher_concepts = unit(seen["teacher"][:20])
    model.teacher_concept_emb.copy_(torch.from_numpy(teacher_concepts))
    concepts = unit(torch.load(world / "concepts.pth", weights_only=True).double().numpy())
    p_teacher = softmax(unit(seen["teacher"]) @ teacher_concepts.T / temperature)
    confidence = np.sort(p_teacher.max(axis=1))
    # In the widest gap, where rounding decides nothing; or above all, which keeps all.
    gap = int(np.argmax(np.diff(confidence[4:20]))) + 4
    threshold = float(confidence[gap : gap + 2].mean()) if some else 1.0
    model.matching = replace(model.matching, threshold=threshold, across_processes=False)
    with EventStorage() as storage:
        losses = model(make_batch())
    student, text = seen["student"], seen["text"]
    assert student.shape == (4 * 7, 32)
    rows = np.arange(28).reshape(4, 7)
    # Image and text: each image's own embedding is the last of its seven.
    scores = unit(student[rows[:, 6]]) @ unit(text).T / 0.05
    diagonal = np.arange(4)
    both = [-np.log(softmax(s)[diagonal, diagonal]).mean() for s in (scores, scores.T)]
    assert losses["loss_img_txt_level"].item() == pytest.approx(np.mean(both), rel=1e-5)
    # Region and concept.
    kept = p_teacher.max(axis=1) > threshold
    if not kept.any():
        kept[:] = True
    assert kept.sum() == storage.latest()["pretrain/num_labelled_regions"][0] == (23 - gap if some else 24)
    p_teacher, regions = p_teacher[kept], unit(student[rows[:, :6].ravel()][kept])
    labels = p_teacher.argmax(axis=1)
    assert len(set(labels)) > 1
    p_student = softmax(regions @ concepts.T / 0.05)
    safe = np.where(p_teacher > 0, p_teacher, 1)
    divergence = (p_teacher * (np.log(safe) - np.log(p_student))).sum() / kept.sum()
    assert losses["loss_region_distill"].item() == pytest.approx(divergence, rel=1e-5)
    p_pairs = softmax(regions @ concepts[labels].T / 0.05)
    same = labels[:, None] == labels[None]
    contrast = -np.log((p_pairs * same).sum(axis=1)).mean()
    assert losses["loss_concept_contrastive"].item() == pytest.approx(contrast, rel=1e-5, abs=1e-6)


def test_region_losses_have_factors(world):
    def losses(**factors):
        with EventStorage():
            return make_model(world, **factors)(make_batch())

    every = losses()
    half = losses(MODEL__CLIP__DISTILL_LOSS_WEIGHT=0.5, MODEL__CLIP__CONTRASTIVE_LOSS_WEIGHT=0.0)
    assert set(half) == set(every) - {"loss_concept_contrastive"}
    assert half["loss_region_distill"].item() == pytest.approx(every["loss_region_distill"].item() / 2, rel=1e-6)
    assert set(losses(MODEL__CLIP__DISTILL_LOSS_WEIGHT=0.0)) == set(every) - {"loss_region_distill"}


@pytest.mark.parametrize("regions", ["aligned", "cropped"])
def test_gradients_reach_the_student_and_nothing_else(world, regions):
    model = make_model(world, MODEL__CLIP__TEACHER_REGIONS=regions)
    with EventStorage():
        sum(model(make_batch()).values()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    parts = {".".join(name.split(".")[:2]) for name in reached}
    assert parts == {"backbone.layer2", "backbone.layer3", "backbone.layer4", "backbone.attnpool"}
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    # The bias of the keys moves all scores alike, so its gradient is rounding.
    assert learned - reached <= {"backbone.attnpool.k_proj.bias"}


def test_distillation_stays_finite_where_the_student_is_sure(world):
    model = make_model(world, MODEL__CLIP__CLSS_TEMP=0.001)
    with EventStorage():
        assert all(math.isfinite(loss) for loss in model(make_batch()).values())


@pytest.mark.parametrize(("global_box", "width"), [("image", 80), ("padded", 96)])
def test_the_global_box_spans_the_image_or_the_batch(world, global_box, width):
    model = make_model(world, MODEL__CLIP__GLOBAL_BOX=global_box)
    batch = [make_batch(1)[0], make_batch(1, size=(64, 96))[0]]
    images = model.preprocessor([image["image"] for image in batch])
    boxes = model._whole_image_boxes(images)
    assert [b.tensor.tolist() for b in boxes] == [[[0, 0, width, 64]], [[0, 0, 96, 64]]]


@pytest.mark.parametrize("source", ["RANDOM", "GRID"])
def test_regions_without_an_rpn(world, source):
    model = make_model(world, MODEL__CLIP__CROP_REGION_TYPE=source, MODEL__CLIP__OFFLINE_RPN_CONFIG="")
    assert model.offline_backbone is None
    with EventStorage():
        losses = model(make_batch())
    assert set(losses) == {"loss_img_txt_level", "loss_region_distill", "loss_concept_contrastive"}


def test_random_boxes_lie_in_the_image_on_a_grid_and_follow_the_seed():
    image = {"image": torch.zeros(3, 61, 100), "seed": 3}
    source = RandomBoxes(500)
    (found,) = source.propose([image], torch.device("cpu"))
    boxes = found.proposal_boxes.tensor
    assert torch.equal(boxes, source.propose([image], torch.device("cpu"))[0].proposal_boxes.tensor)
    assert not torch.equal(boxes, source.propose([image | {"seed": 4}], torch.device("cpu"))[0].proposal_boxes.tensor)
    assert (boxes[:, :2] % 8 == 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.amin() == 0
    assert boxes[:, 2].max() <= 100 and boxes[:, 3].max() <= 61


def test_grid_boxes_are_the_cells():
    (found,) = GridBoxes().propose([{"image": torch.zeros(3, 40, 70)}], torch.device("cpu"))
    assert found.proposal_boxes.tensor.tolist() == [
        [0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 70, 32], [0, 32, 32, 40], [32, 32, 64, 40], [64, 32, 70, 40],
    ]  # fmt: skip


def share_of(rank, world_size, port, folder, output):
    torch.set_num_threads(1)
    join(
        Place(rank, world_size, rank, world_size, f"tcp://127.0.0.1:{port}"),
        lambda: gradients(folder, output),
        on_gpu=False,
    )


def gradients(folder, output):
    """Write losses and gradients of a batch, dealt out as evenly as it goes, averaged as DDP does."""
    model = make_model(folder, MODEL__CLIP__CONCEPT_THRES=0.3).double()
    # Images of several sizes: what one process pads, all have to.
    batch = [image for i, image in enumerate(make_batch(7)) if i % 3] + make_batch(3, seed=1, size=(96, 72))[1:]
    with EventStorage():
        losses = model(batch[comm.get_rank() :: comm.get_world_size()])
    sum(losses.values()).backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if comm.get_world_size() > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value /= comm.get_world_size()
    if comm.is_main_process():
        torch.save(found, output)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_have_the_losses_and_gradients_of_one(processes, world, tmp_path):
    gradients(world, tmp_path / "one.pth")
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    arguments = (processes, port, world, tmp_path / "several.pth")
    started = [context.Process(target=share_of, args=(rank, *arguments)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes
    one, several = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("one", "several"))
    assert one.keys() == several.keys()
    assert sum(name.startswith("loss_") for name in one) == 3
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, atol=1e-9, rtol=1e-6, msg=name)


def seen_samples(output):
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    return [image for line in lines for image in line["images"]]


def test_a_run_killed_within_a_shard_repeats_no_sample_and_loses_none(world, tmp_path):
    log = {"DATASETS__LOG_SAMPLES": True}
    _, report = pretrain(world, tmp_path / "whole", **log)
    assert report.iterations == 20
    whole = seen_samples(tmp_path / "whole")
    for epoch in range(3):  # 80 draws of 24 samples
        assert len(set(whole[24 * epoch : 24 * (epoch + 1)])) == 24
    rng = random.Random(0)
    for _ in range(3):
        process = start_pretraining(world, tmp_path / "killed", **log)
        process.join(rng.uniform(1.0, 4.0))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    process = start_pretraining(world, tmp_path / "killed", **log)
    process.join()
    assert process.exitcode == 0
    assert seen_samples(tmp_path / "killed") == whole


def test_gradient_accumulation_computes_a_batch_in_parts(world, tmp_path):
    still = {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": "()", "MODEL__CLIP__PRETRAIN_IMG_TXT_LEVEL": False}
    # Contrast is within a part; distillation alone is a mean over regions of equal number. No padding: one size.
    still |= {"MODEL__CLIP__CONCEPT_THRES": 0.0, "MODEL__CLIP__CONTRASTIVE_LOSS_WEIGHT": 0.0}
    still |= {"AUG__TRAIN__IMAGE_SIZE": "[64, 64]"}
    trainers = [pretrain(world, tmp_path / f"{n}", SOLVER__GRADIENT_ACCUMULATION=n, **still)[0] for n in (1, 2)]
    metrics = [[v for v, _ in t.storage.history("loss_region_distill").values()] for t in trainers]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    whole, parts = (dict(trainer.model.named_parameters()) for trainer in trainers)
    trained = [name for name, weight in whole.items() if weight.requires_grad]
    assert trained
    for name in trained:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-4, msg=name)
    cfg = pretraining_config(world, tmp_path, SOLVER__GRADIENT_ACCUMULATION=5)
    assert str(next(training_problems(cfg))).startswith("SOLVER.GRADIENT_ACCUMULATION: expected 1 to 4")


def test_the_rpn_is_skipped_in_later_epochs(world, tmp_path):
    cache = {"MODEL__CLIP__PROPOSAL_CACHE": tmp_path / "cache"}
    pretrain(world, tmp_path / "a", **cache)
    trainer, _ = pretrain(world, tmp_path / "b", **cache)
    assert trainer.model.proposal_source._written == 0
    assert differing(final_state(tmp_path / "a")["model"], final_state(tmp_path / "b")["model"]) == []


def test_a_teacher_of_another_size_comes_from_its_own_file(world, tmp_path):
    architecture = json.loads((DATA / "tiny_clip.json").read_text())
    architecture["embed_dim"], architecture["vision_cfg"]["width"] = 48, 32
    (tmp_path / "teacher.json").write_text(json.dumps(architecture))
    torch.save(deterministic_text_embeddings("teacher", 20, 48), tmp_path / "teacher_concepts.pth")
    sizes = {
        "MODEL__CLIP__TEACHER_ARCHITECTURE": tmp_path / "teacher.json",
        "MODEL__CLIP__TEACHER_CONCEPT_POOL_EMB": tmp_path / "teacher_concepts.pth",
    }
    (*_, problem) = training_problems(
        pretraining_config(world, tmp_path, **sizes | {"MODEL__CLIP__TEACHER_CONCEPT_POOL_EMB": ""})
    )
    assert "TEACHER_CONCEPT_POOL_EMB" in str(problem) and "[20, 48]" in str(problem)
    with pytest.raises(UserError, match="weights of teacher_backbone: expected in the checkpoint"):
        pretrain(world, tmp_path / "out", **sizes)
    model = build_model(pretraining_config(world, tmp_path, **sizes))
    fill_deterministic(model)
    teacher = {key: value for key, value in model.state_dict().items() if key.startswith("teacher_")}
    visual = {key.replace("teacher_backbone.", "visual."): value for key, value in teacher.items()}
    torch.save(visual, tmp_path / "teacher.pth")
    _, report = pretrain(world, tmp_path / "out", MODEL__CLIP__TEACHER_WEIGHTS=tmp_path / "teacher.pth", **sizes)
    assert report.iterations == 20
    state = final_state(tmp_path / "out")["model"]
    assert torch.equal(state["teacher_backbone.conv1.weight"], visual["visual.conv1.weight"])


def test_the_result_is_a_detector(run_tool, world, tmp_path):
    """Losses fall; the checkpoint is the MODEL.WEIGHTS of zero-shot and transfer."""
    trainer, report = pretrain(world, tmp_path / "out", SOLVER__MAX_ITER=60, SOLVER__STEPS="()", SOLVER__BASE_LR=0.01)
    for name in ("loss_img_txt_level", "loss_region_distill", "total_loss"):
        values = [value for value, _ in trainer.storage.history(name).values()]
        assert np.mean(values[-10:]) < 0.9 * np.mean(values[:10]), name
    embeddings = tmp_path / "embeddings.pth"
    torch.save(deterministic_text_embeddings("lvis_1203", 1203, 32), embeddings)
    overrides = TINY | {"MODEL.CLIP.TEXT_EMB_PATH": str(embeddings)}
    config = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_custom_img.yaml"
    model = build_model(load_config(config, flat(overrides)))
    loaded = load_weights(model, str(report.weights))
    assert loaded.uncovered == []
    student = trainer.model.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(("backbone.", "offline_")):
            assert torch.equal(value, student[key]), key
    (tmp_path / "in").mkdir()
    shutil.copy(DATA / "four_photos" / "images" / "000000234748.jpg", tmp_path / "in")
    overrides |= {
        "MODEL.WEIGHTS": str(report.weights),
        "INPUT_DIR": str(tmp_path / "in"),
        "OUTPUT_DIR": str(tmp_path / "found"),
    }
    code, output = run_tool("train_net.py", "--eval-only", "--config-file", config, *flat(overrides))
    assert code == 0, output
    assert (tmp_path / "found" / "inference" / "lvis_instances_results.json").is_file()


def test_pools_of_teacher_and_student_have_the_same_names(world, tmp_path):
    names = [f"concept {i}" for i in range(20)]
    for file, order in (("student", names), ("teacher", names[::-1])):
        Vocabulary(tuple(order), torch.rand(20, 32), torch.arange(20)).save(tmp_path / f"{file}.safetensors")
    pools = {
        "MODEL__CLIP__CONCEPT_POOL_EMB": tmp_path / "student.safetensors",
        "MODEL__CLIP__TEACHER_CONCEPT_POOL_EMB": tmp_path / "teacher.safetensors",
    }
    (problem,) = training_problems(pretraining_config(world, tmp_path, **pools))
    assert "expected the student's concepts in the same order, got concept 0 and concept 19" in str(problem)


BAD_CONFIGS = {
    "the wrong dimension": ({"MODEL__CLIP__CONCEPT_POOL_EMB": "wide.pth"}, r"\[K, 32\], got float32 \[20, 48\]"),
    "nothing to learn": (
        {"MODEL__CLIP__CONCEPT_POOL_EMB": "", "MODEL__CLIP__PRETRAIN_IMG_TXT_LEVEL": False},
        "no loss is enabled",
    ),
    "no factor": (
        {
            "MODEL__CLIP__DISTILL_LOSS_WEIGHT": 0.0,
            "MODEL__CLIP__CONTRASTIVE_LOSS_WEIGHT": 0.0,
            "MODEL__CLIP__PRETRAIN_IMG_TXT_LEVEL": False,
        },
        "no loss is enabled",
    ),
    "a test set": ({"DATASETS__TEST": "('coco_2017_val',)"}, "DATASETS.TEST: expected no dataset in pretraining"),
    "every token": ({"MODEL__CLIP__PRETRAIN_ONLY_EOT": False}, "a caption has one embedding"),
    "no threshold": ({"MODEL__CLIP__CONCEPT_THRES": None}, "CONCEPT_THRES: expected a probability"),
    "a pool that does not fit": ({"MODEL__CLIP__TEACHER_POOLER_RESOLUTION": 14}, "fits the attention pool"),
    "two datasets, one path": ({"DATASETS__TRAIN": "('imgtxtpairs', 'imgtxtpairs')"}, "an entry in each"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_contradictions_are_reported_before_anything_is_built(case, world, tmp_path):
    torch.save(torch.rand(20, 48), tmp_path / "wide.pth")
    changes, message = BAD_CONFIGS[case]
    changes = {key: tmp_path / value if str(value).endswith(".pth") else value for key, value in changes.items()}
    problems = list(training_problems(pretraining_config(world, tmp_path, **changes)))
    assert problems
    with pytest.raises(UserError, match=message):
        raise UserError(problems)


def test_a_teacher_without_weights_is_an_error(world, tmp_path):
    weights = torch.load(world / "weights.pth", weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in weights.items() if "teacher" not in k}}, tmp_path / "student.pth")
    with pytest.raises(UserError, match="weights of teacher_backbone"):
        pretrain(world, tmp_path / "out", MODEL__WEIGHTS=tmp_path / "student.pth")
    assert not (tmp_path / "out").exists()


def test_evaluating_a_pretraining_config_says_what_to_do_instead(world):
    with pytest.raises(RuntimeError, match="CLIP_fast_rcnn config"):
        make_model(world).eval()(make_batch(1))
