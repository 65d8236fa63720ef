"""Image crops as CLIP sees them, and region embeddings of them (goldens `p`: LP-OVOD)."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as image_ops

from regionclip.clip.architectures import CLIPArchitecture, get_architecture
from regionclip.clip.crops import CropEncoder, crop_boxes, crop_image
from regionclip.clip.image_encoders.clip_vit import CLIPVisionTransformer
from tests.helpers.paths import GOLDENS

UNITS = np.load(GOLDENS / "p_lp_ovod.npz")
SMALL = CLIPArchitecture("small", (2,), 128, 32, 64, 64, 1, patch_size=32)


def photo(height, width, seed=0):
    """A smooth image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, height // 8 + 2, width // 8 + 2)).astype(np.float32)
    return F.interpolate(torch.from_numpy(coarse)[None], size=(height, width), mode="bicubic")[0].clamp(0, 255).byte()


@pytest.mark.parametrize(("scale", "key"), [(1.0, "scale1"), (1.5, "scale15")])
def test_crops_take_the_published_pixels(scale, key):
    boxes, size = torch.from_numpy(UNITS["crops/boxes"]), tuple(UNITS["crops/image_size_hw"].tolist())
    expected = torch.from_numpy(UNITS[f"crops/{key}"]).long()
    assert torch.equal(crop_boxes(boxes, size, scale), expected)
    assert torch.equal(crop_boxes(boxes.float(), size, scale), expected)


@pytest.mark.parametrize("box", [[640.0, 10, 640, 20], [-20, -20, -5, -5], [10, 10, 10, 10], [700, 500, 900, 900]])
def test_a_box_without_pixels_gets_one(box):
    (x1, y1, x2, y2), *_ = crop_boxes(torch.tensor([box]), (427, 640)).tolist()
    assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 427


@pytest.mark.parametrize("box", [[0, 0, 300, 200], [10, 20, 70, 190], [5, 7, 31, 12], [40, 10, 264, 200]])
def test_a_crop_is_what_open_clip_makes_of_an_image(box):
    image, (x1, y1, x2, y2) = photo(200, 300), box
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    transform = open_clip.image_transform(224, is_train=False, mean=mean, std=std)
    given = transform(Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box))
    expected = given * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    crop = crop_image(image, (x1, y1, x2, y2), 224)
    assert crop.shape == (3, 224, 224)
    apart = (crop - expected * 255).abs()  # two resize routines round differently
    assert float(apart.max()) < 2.1 and float(apart.mean()) < 0.01


def test_a_long_box_takes_no_more_memory_than_its_visible_part(monkeypatch):
    image, sizes = photo(8, 4000), []
    resize = image_ops.resize
    monkeypatch.setattr(
        image_ops, "resize", lambda crop, *rest, **more: sizes.append(crop.shape) or resize(crop, *rest, **more)
    )
    crop = crop_image(image, (0, 0, 4000, 2), 32)
    middle = crop_image(image[:, :, 1900:2100], (0, 0, 200, 2), 32)
    assert crop.shape == (3, 32, 32)
    assert torch.equal(crop, middle)
    assert max(size[-1] for size in sizes) < 400


class Counted:
    """An image encoder that returns given rows in order."""

    architecture = CLIPArchitecture("rows", (1,), 64, 512, 16, 64, 1, patch_size=16)

    def __init__(self, rows):
        self.rows, self.done = rows, 0

    def embed_images(self, images):
        self.done += len(images)
        return self.rows[self.done - len(images) : self.done]


def test_a_region_embedding_is_the_sum_of_both_crops():
    rows = torch.cat([torch.from_numpy(UNITS["fusion/crop1"]), torch.from_numpy(UNITS["fusion/crop15"])])
    boxes = torch.tensor([[1.0, 1, 9, 9]]).repeat(20, 1)
    embedded = F.normalize(CropEncoder(Counted(rows), lambda crops: crops).embed(photo(16, 16), boxes), dim=1)
    torch.testing.assert_close(embedded, torch.from_numpy(UNITS["fusion/embedding"]), atol=1e-6, rtol=0)
    stored = torch.from_numpy(UNITS["fusion/stored_fp16"]).view(torch.int16).int()
    assert int((embedded.half().view(torch.int16).int() - stored).abs().max()) <= 1


@pytest.mark.parametrize("count", [0, 1, 70])
def test_regions_are_embedded_in_chunks_of_any_number(count):
    torch.manual_seed(0)
    encoder = CLIPVisionTransformer(SMALL).eval()
    boxes = torch.rand(count, 4) * 30 + torch.tensor([0.0, 0, 40, 40])
    image = photo(80, 90)
    with torch.no_grad():
        embedded = CropEncoder(encoder, lambda crops: crops / 255.0).embed(image, boxes)
        alone = [
            sum(encoder.embed_images(crop_image(image, box.tolist(), 64)[None] / 255.0)[0] for box in crops)
            for crops in zip(crop_boxes(boxes, (80, 90)), crop_boxes(boxes, (80, 90), 1.5), strict=True)
        ]
    assert embedded.shape == (count, 32)
    for row, expected in zip(embedded, alone, strict=True):
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "peer"), [("ViT-B/32", "ViT-B-32-quickgelu"), ("ViT-B/16", "ViT-B-16-quickgelu")])
def test_the_published_sizes_are_open_clips(name, peer, tmp_path):
    (tmp_path / "peer.json").write_text(json.dumps(open_clip.get_model_config(peer)))
    assert replace(get_architecture(str(tmp_path / "peer.json")), name=name) == get_architecture(name)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_vision_transformer_is_open_clips(quick_gelu, tmp_path):
    config = {
        "embed_dim": 32,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    name = f"crop_vit_{quick_gelu}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    peer = open_clip.create_model(name).eval()
    ours = CLIPVisionTransformer(get_architecture(str(tmp_path / f"{name}.json"))).eval()
    ours.load_state_dict(peer.visual.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.embed_images(images), peer.encode_image(images), atol=1e-5, rtol=1e-5)
