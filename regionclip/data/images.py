"""Reading of images of any format as uint8 RGB or BGR arrays."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageFile, ImageOps
from torch import Tensor

from regionclip.errors import UserError, user_error


def _endings_that_pillow_decodes() -> frozenset[str]:
    Image.init()
    # Pillow identifies MPEG without decoding it, and needs an external program for EPS.
    decoded = {"MPO"} | (Image.OPEN.keys() - {"MPEG", "EPS"})
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in decoded - stubs)


IMAGE_ENDINGS = _endings_that_pillow_decodes()
"""Extensions, lower case, of the files that count as images in a folder: all that Pillow decodes."""

WHITE = "white"
"""Default color behind transparent pixels."""

PIXEL_LIMIT = "REGIONCLIP_MAX_PIXELS"
"""Environment variable that raises Pillow's pixel limit, for command lines."""

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, struct.error),  # NotImplementedError is a RuntimeError
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),  # the latter if warnings are errors
)
"""Exceptions of Pillow for damaged images, damaged EXIF data, and images above its pixel limit."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L")
_AMBIGUOUS_MODES = ("I", "F")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats without 32-bit pixels, which Pillow may open in a 32-bit mode."""


class UnreadableImageError(OSError):
    """An image cannot be decoded: missing, empty, truncated, or not an image."""


@dataclass(frozen=True)
class DecodedImage:
    """Pixels of an image file, and notes on what they omit."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] in RGB."""
    notes: tuple[str, ...] = ()
    """Such as "transparent pixels on white" or "the first of several frames only"; usually empty."""


def decode_image(path: str | Path | BinaryIO, matte: str = WHITE) -> DecodedImage:
    """Decode an image, upright.

    EXIF rotation is applied; grayscale, palette and CMYK are converted to RGB; 16-bit grayscale is scaled to
    8 bits; transparent pixels are blended with `matte`, as viewers do; of several frames the first is read.

    Args:
        path: image file, or one opened in binary mode.
        matte: color behind transparent pixels, by name or as `#rrggbb`.

    Raises:
        UnreadableImageError: the file cannot be decoded.
        UserError: no such color.
    """
    color = require_color(matte)
    try:
        with Image.open(path) as image:
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image), image.format, color))
            return DecodedImage(pixels, _notes(image, matte))
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f"{path}: {_reason(error)}") from error


def read_image(path: str | Path | BinaryIO, channels: str = "RGB", matte: str = WHITE) -> NDArray[np.uint8]:
    """Decode an image as `decode_image` does, and return its pixels, uint8 [H, W, 3].

    Args:
        path: image file, or one opened in binary mode.
        channels: "RGB" or "BGR".
        matte: color behind transparent pixels.

    Raises:
        UnreadableImageError: the file cannot be decoded.
    """
    pixels = decode_image(path, matte).pixels
    return pixels if channels == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def require_color(matte: str) -> tuple[int, int, int]:
    """Return red, green and blue of a color given by name or as `#rrggbb`; raises `UserError` if invalid."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(matte)
    except (ValueError, AttributeError) as error:
        raise user_error("matte", "a color by name or as #rrggbb", repr(matte), "such as white or black") from error
    return red, green, blue


def raise_pixel_limit() -> None:
    """Set Pillow's pixel limit to the environment variable REGIONCLIP_MAX_PIXELS.

    For own programs only: the limit applies to the whole process.

    Raises:
        UserError: the variable is not a number above 0.
    """
    text = os.environ.get(PIXEL_LIMIT, "")
    if not text:
        return
    if not text.isdecimal() or int(text) < 1:
        raise user_error(PIXEL_LIMIT, "a number of pixels above 0", repr(text), "such as 400000000")
    Image.MAX_IMAGE_PIXELS = -(-int(text) // 2)  # Pillow raises at twice this number


def to_rgb_pixels(image: Image.Image | NDArray[Any] | Tensor, matte: str = WHITE) -> NDArray[np.uint8]:
    """Return an image in memory as uint8 [H, W, 3] in RGB.

    Args:
        image: PIL image (turned upright), array [H, W, 3], [H, W, 1] or [H, W], or tensor
            [3, H, W]; uint8, or floats in [0, 1].
        matte: color behind transparent pixels of a PIL image.

    Raises:
        UserError: another shape, type or range, or no such color.
    """
    if isinstance(image, Image.Image):
        color = require_color(matte)
        try:
            return np.array(_to_rgb(ImageOps.exif_transpose(image), image.format, color))
        except DECODING_ERRORS as error:
            raise user_error("image", "one that can be decoded", _reason(error), "open the file again") from error
    if isinstance(image, Tensor):
        image = (image.float() if image.is_floating_point() else image).detach().cpu()
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise _shape_error(image)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _from_floats(pixels)
    if pixels.dtype != np.uint8:
        raise user_error("image", "uint8, or floats in [0, 1]", str(pixels.dtype), "convert it to uint8")
    # A copy, so that later changes by the caller do not affect the image.
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def _shape_error(image: object) -> UserError:
    shape, fix = list(np.shape(cast(NDArray[Any], image))), "give an RGB array [H, W, 3] or an RGB tensor [3, H, W]"
    actual = str(shape) if shape else type(image).__name__
    if image is None:
        actual, fix = (
            "None: was the file read?",
            "give its path, which names what is wrong; cv2.imread returns None then",
        )
    elif len(shape) == 3 and 4 in (shape[0], shape[2]):
        fix = "blend the fourth channel, alpha, with a background; of a PIL image this is done here"
    return user_error("image", "an array [H, W, 3] or a tensor [3, H, W]", actual, fix)


def _from_floats(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # Resizing leaves values slightly outside of [0, 1]; those that round to a valid level are accepted.
    levels = (pixels * 255).round() if np.isfinite(pixels).all() else None
    if levels is None or levels.min() < 0 or levels.max() > 255:
        actual = f"{pixels.min():.7g} to {pixels.max():.7g}"
        raise user_error("image of floats", "values in [0, 1]", actual, "divide by 255, or give uint8")
    return levels.astype(np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the upright image, without decoding it.

    Raises:
        UnreadableImageError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow itself swaps the sides of a rotated TIFF.
            turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
    except DECODING_ERRORS as error:
        raise UnreadableImageError(f"{path}: {_reason(error)}") from error
    return (width, height) if turned else (height, width)


def _reason(error: Exception) -> str:
    if not isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return str(error)
    fix = f"make the image smaller or cut it into parts, or set {PIXEL_LIMIT} to allow more"
    return f"{' '.join(str(error).split(',')[0].split())}. Fix: {fix}"


def _notes(image: Image.Image, matte: str) -> tuple[str, ...]:
    notes = ["the first of several frames only"] if _has_frames(image) else []
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        notes.append(f"transparent pixels on {matte}")
    return tuple(notes)


def _has_frames(image: Image.Image) -> bool:
    # Further frames of MPO and icons show the same in another size or from another viewpoint.
    try:
        return image.format not in ("MPO", "ICO", "ICNS", "CUR") and getattr(image, "is_animated", False)
    except (*DECODING_ERRORS, EOFError):
        return False  # the frames after the first are damaged


def _to_rgb(image: Image.Image, file_format: str | None, matte: tuple[int, int, int]) -> Image.Image:
    is_sixteen_bit = image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and file_format in _SIXTEEN_BIT_FORMATS)
    if image.mode in _AMBIGUOUS_MODES and not is_sixteen_bit:
        raise ValueError("32-bit pixels, whose range no file states; convert the image to 8 or 16 bits")
    if is_sixteen_bit:
        # Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image, dtype=np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*matte, 255)), image.convert("RGBA"))
    return image.convert("RGB")
