"""Cameras that are none: what OpenCV would open, in memory."""

import time

import cv2
import numpy as np


class FakeCamera:
    """Gives frames whose pixels are their number, one each `interval` seconds, then no more."""

    def __init__(self, frames=10**9, interval=0.005, size=(128, 96), count=-1, on_frame=None):
        self.frames, self.interval, self.size, self.count = frames, interval, size, count
        self.on_frame = on_frame
        self.given = 0
        self.is_released = False

    def read(self):
        time.sleep(self.interval)
        if self.given >= self.frames:
            return False, None
        pixels = np.full((self.size[1], self.size[0], 3), self.given % 256, np.uint8)
        self.given += 1
        if self.on_frame is not None:
            self.on_frame(self.given)
        return True, pixels

    def get(self, number):
        return {cv2.CAP_PROP_FRAME_COUNT: self.count, cv2.CAP_PROP_POS_MSEC: 40.0 * (self.given - 1)}[number]

    def release(self):
        self.is_released = True


def plug_in(monkeypatch, camera):
    """Let OpenCV open a camera as number 0, and all else as ever."""
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source, *more: camera if source == 0 else real(source, *more))
    return camera
