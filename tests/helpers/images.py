"""Small images."""

import numpy as np
from PIL import Image


def write_image(path, size=(90, 60), mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
