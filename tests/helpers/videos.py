"""Small videos."""

import cv2
import numpy as np
from PIL import Image

from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())


def write_video(path, frames=7, codec="mp4v"):
    height, width = 96, 128
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (width, height))
    first = np.array(Image.open(PHOTOS[0]).convert("RGB").resize((width, height)))
    for i in range(frames):
        video.write(np.roll(first, 9 * i, axis=1)[:, :, ::-1].copy())
    video.release()
