"""The teacher's two ways of looking at regions."""

import pytest
import torch
from detectron2.structures import Boxes
from torch.nn import functional as F

from regionclip.methods.regionclip.teachers import build_teacher
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.pretraining import pretraining_config

SIDE = 64  # of the images of the tiny CLIP


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")

    def make(regions):
        teacher = build_teacher(pretraining_config(folder, folder, MODEL__CLIP__TEACHER_REGIONS=regions))
        fill_deterministic(teacher.backbone)
        teacher.backbone.double().eval()
        return teacher

    return make


@pytest.fixture
def image():
    return torch.rand(1, 3, 2 * SIDE, 3 * SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CASES = {
    "a square of the right size": ([70, 30, 134, 94], lambda image: image[..., 30:94, 70:134]),
    "an upright box stands in its square": ([92, 30, 112, 94], lambda image: image[..., 30:94, 70:134]),
    "a flat box, too": ([70, 57, 134, 67], lambda image: image[..., 30:94, 70:134]),
    "a larger one is averaged": ([10, 0, 138, 128], lambda image: F.avg_pool2d(image[..., 10:138], 2)),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_cropping_teacher_sees_a_region_as_an_image(case, teacher, image):
    box, cut_out = CASES[case]
    cropping = teacher("cropped")
    found = cropping.embed(image, [Boxes(torch.tensor([box]).double())])
    torch.testing.assert_close(found, cropping.backbone.embed_images(cut_out(image)))


@torch.no_grad()
@pytest.mark.parametrize(("regions", "sees_surroundings"), [("aligned", True), ("cropped", False)])
def test_surroundings_reach_the_aligned_region_alone(regions, sees_surroundings, teacher, image):
    one = teacher(regions)
    boxes = [Boxes(torch.tensor([[70.0, 30, 134, 94]]).double())]
    other = torch.zeros_like(image)
    other[..., 29:95, 69:135] = image[..., 29:95, 69:135]
    assert torch.allclose(one.embed(image, boxes), one.embed(other, boxes)) != sees_surroundings


@torch.no_grad()
def test_regions_come_in_the_order_of_the_images(teacher, image):
    cropping = teacher("cropped")
    images = torch.cat([image, image.flip(3)])
    boxes = [Boxes(torch.tensor(b).double().reshape(-1, 4)) for b in ([[0, 0, 64, 64], [9, 9, 80, 99]], [])]
    mirrored = [Boxes(torch.zeros(0, 4).double()), Boxes(torch.tensor([[128.0, 0, 192, 64]]).double())]
    found = cropping.embed(images, boxes)
    assert found.shape == (2, 32)
    torch.testing.assert_close(
        cropping.embed(images, mirrored), cropping.backbone.embed_images(image[..., :64, :64].flip(3))
    )
