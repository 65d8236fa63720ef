"""DetPro in small, for the tests that every method passes."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

from regionclip.config.loading import load_config
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA

CONFIG = "configs/ralf/detpro_lvis.yaml"
CLASSES = 5
EMBEDDINGS = "MODEL.CLIP.TEXT_EMB_PATH"
NAMES = "cat,dog,horse,boat,traffic light"
OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": "False",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "16",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "2",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "2",
    "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
    "MODEL.CLIP.TEXT_EMB_DIM": "32",
    "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": "",
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "50",
    "MODEL.RALF.BASE_CLASSES": "cat,dog,horse",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "256",
    "DATALOADER.NUM_WORKERS": "0",
}
TRAINED = OVERRIDES | {"MODEL.RALF.DISTILL_WEIGHT": "0.0"}


def config(base=CONFIG, options=OVERRIDES, **overrides):
    """Return the config of a tiny detector without class embeddings."""
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(base, flat(options | {"DATASETS.TEST": "()", EMBEDDINGS: ""} | changes))


def image_input(objects=True):
    """Return a mapped training image with two objects or none, their masks, and stored regions."""
    target = Instances((96, 128))
    corners = torch.tensor([[8.0, 8, 90, 80], [30, 20, 60, 90]])[: 2 if objects else 0]
    target.gt_boxes, target.gt_classes = Boxes(corners), torch.tensor([1, 0])[: len(corners)]
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in corners.tolist()]
    target.gt_masks = PolygonMasks(polygons)
    regions = Instances((96, 128))
    regions.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 40, 40], [20, 30, 90, 90]]))
    regions.embeddings = deterministic_text_embeddings("teacher", 2, 32)
    pixels = torch.randint(0, 255, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": pixels, "instances": target, "regions": regions, "seed": 3, "height": 192, "width": 256}
