"""Object-Centric-OVD: scores by a literal computation, RAF on final boxes, published keys, inference only."""

import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.config.training_checks import training_problems
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA
from tests.methods.ralf.added import RAF
from tests.methods.ralf.stores import write_concepts
from tests.methods.ralf.tiny import image_input

NAMES = ("cat", "dog", "horse", "boat", "traffic light")
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.RALF.TRANSFER_CHANNELS": "24",
    "MODEL.RALF.CLASS_BIAS": "-1.5",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "DATASETS.TEST": "()",
}


@pytest.fixture(params=["object_centric_coco.yaml", "object_centric_lvis.yaml"])
def build(request, embedding_file):
    """Return what builds a tiny detector on a C4 backbone, or on an FPN."""
    embeddings = {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("centric", 5, 32, NAMES)}
    small = {
        "MODEL.MASK_ON": "False",
        "MODEL.FPN.OUT_CHANNELS": "16",
        "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
        "MODEL.ROI_HEADS.NUM_CLASSES": "5",
    }

    def make(**changes):
        other = {key.replace("__", "."): str(value) for key, value in changes.items()}
        cfg = load_config(f"configs/ralf/{request.param}", flat(OPTIONS | small | embeddings | other))
        model = build_model(cfg)
        fill_deterministic(model)
        return cfg, model

    return make


BOXES = Boxes(torch.tensor([[0.0, 0, 40, 40], [30, 10, 120, 90]]))


def test_scores_are_those_of_a_literal_computation(build):
    cfg, model = build()
    check_config(cfg)
    state = {key.rpartition("cls_score.")[2]: value for key, value in model.state_dict().items() if "cls_score" in key}
    layers = ("linear", "fc1", "fc2", "fc3", "fc4")
    assert set(state) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert state["fc1.weight"].shape[0] == 24
    (encoding,) = model.encode_images([image_input()], proposals=False)
    embeddings = model.embed_regions(encoding, BOXES)
    x = embeddings[:, 32:]
    hidden = F.leaky_relu(F.linear(state["linear.weight"], state["fc1.weight"], state["fc1.bias"]), 0.1)
    transferred = F.linear(hidden, state["fc2.weight"], state["fc2.bias"])
    residual = F.leaky_relu(F.linear(x, state["fc3.weight"], state["fc3.bias"]), 0.1)
    embedded = F.linear(residual, state["fc4.weight"], state["fc4.bias"]) + x @ transferred.T
    torch.testing.assert_close(embeddings[:, :32], embedded, atol=1e-4, rtol=1e-4)
    expected = (50 * F.normalize(embedded, dim=1) @ model.train_classes.embeddings.T - 1.5).sigmoid()
    torch.testing.assert_close(model.probabilities(embeddings, None)[:, :5], expected, atol=1e-5, rtol=1e-4)


def test_the_forward_pass_is_encoding_and_detecting(build):
    _, model = build()
    (result,) = model([image_input()])
    (encoding,) = model.encode_images([image_input()])
    found = model.detect(encoding, None, Selection())
    assert len(found) and torch.equal(found.pred_classes, result["instances"].pred_classes)
    torch.testing.assert_close(found.scores, result["instances"].scores)


def test_concepts_augment_the_final_boxes(build, tmp_path):
    raf = RAF | {"MODEL.RALF.RAF.FUSION": "prob_add", "MODEL.RALF.RAF.BOX_SOURCE": "final"}
    raf |= {"MODEL.RALF.RAF.EMBEDDING": "crops", "MODEL.RALF.RAF.CLIP": str(DATA / "tiny_clip.json")}
    raf["MODEL.RALF.RAF.CONCEPTS"] = str(write_concepts(tmp_path / "concepts.safetensors"))
    _, model = build(**{key.replace(".", "__"): value for key, value in raf.items()})
    (encoding,) = model.encode_images([image_input()])
    embeddings = model.embed_regions(encoding, BOXES)
    own, augmented = model.raf.split(embeddings)
    refined = model.refine(own, BOXES)
    crops = model.raf.clip(encoding.image, refined, own)
    torch.testing.assert_close(augmented, model.raf.augmenter(crops, model.raf.concepts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.refine(embeddings, BOXES), refined)
    assert len(model.detect(encoding, None, Selection()))


def test_it_is_for_inference_and_for_its_own_heads(build):
    cfg, _ = build()
    assert "MODEL.META_ARCHITECTURE" in [problem.what for problem in training_problems(cfg)]
    cfg.merge_from_list(["MODEL.ROI_HEADS.NAME", "EnsembleROIHeads"])
    with pytest.raises(UserError, match=r"MODEL.ROI_HEADS.NAME: expected Res5ROIHeads or StandardROIHeads"):
        check_config(cfg)


def test_detections_of_the_pyramid_have_masks(build, request):
    if "coco" in request.node.name:
        pytest.skip("the published detector of COCO has no masks")
    _, model = build(MODEL__MASK_ON=True, MODEL__ROI_MASK_HEAD__CONV_DIM=16)
    (result,) = model([image_input()])
    assert result["instances"].pred_masks.shape == (len(result["instances"]), 192, 256)
