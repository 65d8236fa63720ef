"""Reading pictures of any kind as uint8 RGB or BGR arrays."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from regionclip.errors import user_error

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""Endings, in lower case, of the files that count as images in a folder."""

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, struct.error),  # NotImplementedError is a RuntimeError
    Image.DecompressionBombError,
)
"""What Pillow raises for broken pictures and broken EXIF data."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L")
_AMBIGUOUS_MODES = ("I", "F")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats without 32-bit pixels, which Pillow may open in a 32-bit mode."""


class UnreadableImageError(OSError):
    """A picture cannot be decoded: missing, empty, truncated, or no picture at all."""


def read_image(path: str | Path | BinaryIO, channels: str = "RGB") -> NDArray[np.uint8]:
    """Decode a picture, upright.

    EXIF rotation is applied; greyscale, palette, CMYK and transparent pictures become colour;
    16-bit greyscale is scaled to 8 bits.

    Args:
        path: picture file, or one opened in binary mode.
        channels: "RGB" or "BGR".

    Returns:
        uint8 [H, W, 3].

    Raises:
        UnreadableImageError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image), image.format))
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    return pixels if channels == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def to_rgb_pixels(image: Image.Image | NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """Return a picture in memory as uint8 [H, W, 3] in RGB.

    Args:
        image: PIL picture (turned upright), array [H, W, 3], [H, W, 1] or [H, W], or tensor
            [3, H, W]; uint8, or floats in [0, 1].

    Raises:
        UserError: another shape, type or range.
    """
    if isinstance(image, Image.Image):
        try:
            return np.array(_to_rgb(ImageOps.exif_transpose(image), image.format))
        except DECODING_ERRORS as error:
            raise user_error("picture", "one that can be decoded", str(error), "open the file again") from error
    if isinstance(image, Tensor):
        image = (image.float() if image.is_floating_point() else image).detach().cpu()
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        fix = "give an RGB array [H, W, 3] or an RGB tensor [3, H, W]"
        raise user_error("picture", "an array [H, W, 3] or a tensor [3, H, W]", str(list(np.shape(image))), fix)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            actual = f"{pixels.min():g} to {pixels.max():g}"
            raise user_error("picture of floats", "values in [0, 1]", actual, "divide by 255, or give uint8")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise user_error("picture", "uint8, or floats in [0, 1]", str(pixels.dtype), "convert it to uint8")
    # A copy: what the caller does to the array later must not change the picture.
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the upright picture, without decoding it.

    Raises:
        UnreadableImageError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow turns the size of a TIFF itself.
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    return (width, height) if turned else (height, width)


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    is_sixteen_bit = image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and file_format in _SIXTEEN_BIT_FORMATS)
    if image.mode in _AMBIGUOUS_MODES and not is_sixteen_bit:
        raise ValueError("32-bit pixels, whose range no file states; convert the picture to 8 or 16 bits")
    if is_sixteen_bit:
        # Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")
