"""Proposal sources by name."""

import pytest
import torch

from regionclip.config.loading import load_config
from regionclip.data.image_listing import names_below_common_folder
from regionclip.data.test_loader import TestMapper
from regionclip.data.user_boxes import ImageBoxes
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import Selection
from regionclip.modeling.proposals.build import SOURCES, build_proposal_source, rpn_of
from regionclip.modeling.proposals.own import OwnProposals
from regionclip.modeling.proposals.sources import offline_rpn_config
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat
from tests.helpers.paths import DATA

OVD = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd.yaml"
PHOTO = str(sorted((DATA / "four_photos" / "images").iterdir())[0])


@pytest.fixture
def source():
    """Return a proposal source by its name."""

    def build(name, **options):
        cfg = load_config(LVIS_CUSTOM, flat(TINY))
        cfg.MODEL.CLIP.CROP_REGION_TYPE, cfg.MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS = name, 7
        return build_proposal_source(cfg, **options)

    return build


@pytest.mark.parametrize("name", ["RPN", "RANDOM", "GRID"])
def test_boxes_lie_in_the_image(name, source):
    image = {"image": torch.zeros(3, 70, 90, dtype=torch.uint8), "seed": 3}
    (proposals,) = source(name).propose([image], torch.device("cpu"))
    boxes = proposals.proposal_boxes.tensor
    assert len(boxes)
    assert bool((boxes >= 0).all() and (boxes[:, 0::2] <= 90).all() and (boxes[:, 1::2] <= 70).all())
    assert (rpn_of(source(name)) is not None) == (name == "RPN")


def test_boxes_of_a_record_are_scaled_with_the_image(source):
    record = {"file_name": PHOTO, "user_boxes": ImageBoxes([[10, 20, 60, 90]])}
    image = TestMapper(50, 100, "RGB", keep_annotations=False)(record)
    (proposals,) = source("FILE").propose([image], torch.device("cpu"))
    (height, width), scale = image["image"].shape[1:], torch.tensor([image["width"], image["height"]])
    expected = torch.tensor([[10, 20, 60, 90]]) * (torch.tensor([width, height]) / scale).repeat(2)
    torch.testing.assert_close(proposals.proposal_boxes.tensor, expected)
    assert proposals.image_size == (height, width)
    assert "user_boxes" not in image


def test_invalid_boxes_of_a_record_are_an_error_of_its_image():
    record = {"file_name": PHOTO, "user_boxes": ImageBoxes([[10, 20, 5, 90]])}
    image = TestMapper(50, 100, "RGB", keep_annotations=False)(record)
    assert "expected x1 < x2 and y1 < y2" in image["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GT", "expected images with annotated boxes, got no annotation for a.jpg"),
        ("FILE", "expected boxes from PROPOSAL_FILE, got none with a.jpg"),
        ("NONE", "expected user boxes, got none to classify"),
    ],
)
def test_images_without_boxes_are_errors(name, message, source):
    with pytest.raises(UserError, match=message):
        source(name).propose([{"image": torch.zeros(3, 9, 9), "file_name": "a.jpg"}], torch.device("cpu"))


def test_scores_that_depend_on_an_objectness_refuse_boxes_without_one(source, embedding_file):
    options = TINY | {
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_48", 48, 32),
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": "True",
    }
    model = build_model(load_config(OVD, flat(options))).eval()
    model.proposal_source = source("GRID")
    image = {"image": torch.zeros(3, 70, 90, dtype=torch.uint8)}
    message = "MULTIPLY_RPN_SCORE: expected False with proposals without objectness"
    with pytest.raises(UserError, match=message):
        model([image])
    (encoding,) = model.encode_images([image])
    with pytest.raises(UserError, match=message):
        model.detect(encoding, None, Selection())
    (own,) = OwnProposals(model)([image])  # their recall can be evaluated all the same
    assert len(own["proposals"]) and not own["proposals"].objectness_logits.any()


def test_an_iou_of_zero_is_a_threshold():
    options = TINY | {"MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": "0.0"}
    assert offline_rpn_config(load_config(LVIS_CUSTOM, flat(options))).MODEL.RPN.NMS_THRESH == 0.0


def test_an_unknown_source_is_an_error(source):
    with pytest.raises(UserError, match=" or ".join(SOURCES)):
        source("CELLS")


def test_names_below_the_common_folder():
    assert names_below_common_folder(["/a/b/1.jpg", "/a/c/1.jpg"]) == ["b/1.jpg", "c/1.jpg"]
    assert names_below_common_folder(["x/1.jpg"]) == ["1.jpg"]
    assert names_below_common_folder([]) == []
