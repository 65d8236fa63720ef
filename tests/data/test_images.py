import contextlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from regionclip.data.images import (
    IMAGE_ENDINGS,
    UnreadableImageError,
    decode_image,
    image_size,
    raise_pixel_limit,
    read_image,
    to_rgb_pixels,
)
from regionclip.errors import UserError

ORIENTATION = 0x0112

# EXIF 2.32, tag Orientation: what turns the stored rows and columns upright.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.fixture
def noise():
    """Distinct pixels, 20 rows of 30."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def gray(values):
    """Repeat [H, W] over three channels."""
    return np.repeat(np.asarray(values, dtype=np.uint8)[:, :, None], 3, axis=2)


def oriented(path, pixels, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_color_image_is_read_unchanged(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, noise)


def test_bgr_reverses_the_channels(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "a.png")
    pixels = read_image(str(tmp_path / "a.png"), "BGR")
    np.testing.assert_array_equal(pixels, noise[:, :, [2, 1, 0]])
    assert pixels.flags["C_CONTIGUOUS"]


def test_grayscale_fills_three_channels(tmp_path, noise):
    Image.fromarray(noise[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gray(noise[:, :, 0]))


def test_one_bit_image_becomes_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gray([[255, 0], [0, 255]]))


def test_cmyk_without_black_is_the_complement(tmp_path, noise):
    cmyk = np.dstack([noise, np.zeros((20, 30), np.uint8)])
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), 255 - noise)


def test_cmyk_black_darkens(tmp_path):
    cmyk = np.array([[[0, 100, 255, 51]]], np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    # (255 - ink) * (255 - black) / 255 = 204, 124, 0
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), [[[204, 124, 0]]], atol=1)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("CMYK", (32, 32), (200, 40, 100, 0)).save(tmp_path / "a.jpg", quality=95)
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), [55, 215, 155], atol=4)


SIXTEEN_BIT = np.array([[0, 1, 255, 256, 257], [511, 512, 32768, 65279, 65535]], np.uint16)
HIGH_BYTE = [[0, 0, 0, 1, 1], [1, 2, 128, 254, 255]]


def test_sixteen_bit_grayscale_keeps_the_high_byte(tmp_path):
    Image.fromarray(SIXTEEN_BIT).save(tmp_path / "a.png")
    Image.fromarray(SIXTEEN_BIT).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 5 2 65535\n" + SIXTEEN_BIT.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        np.testing.assert_array_equal(read_image(tmp_path / name), gray(HIGH_BYTE), err_msg=name)


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2, 1])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.gif")
    for name in ("a.png", "a.gif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=name)
    unseen = [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [255, 255, 255]]]
    image.save(tmp_path / "transparent.png", transparency=1)
    image.save(tmp_path / "transparent.gif", transparency=1)
    for name in ("transparent.png", "transparent.gif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), unseen, err_msg=name)


@pytest.mark.parametrize(("matte", "behind"), [("white", 255), ("black", 0), ("#0a0a0a", 10)])
def test_transparent_pixels_are_blended_as_a_viewer_shows_them(tmp_path, noise, matte, behind):
    alpha = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    Image.fromarray(np.dstack([noise, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([noise[:, :, 0], alpha]), "LA").save(tmp_path / "la.png")
    share = alpha[:, :, None] / 255
    for name, seen in (("rgba.png", noise), ("la.png", gray(noise[:, :, 0]))):
        decoded = decode_image(tmp_path / name, matte)
        # Porter and Duff's "over" on an opaque background
        np.testing.assert_allclose(decoded.pixels, share * seen + (1 - share) * behind, atol=1, err_msg=name)
        assert decoded.notes == (f"transparent pixels on {matte}",)
        np.testing.assert_array_equal(to_rgb_pixels(Image.open(tmp_path / name), matte), decoded.pixels)
    with pytest.raises(UserError, match="matte: expected a color by name or as #rrggbb, got 'glass'"):
        decode_image(tmp_path / "la.png", "glass")


def test_a_color_that_png_calls_transparent_is_blended(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 255, 255], [4, 5, 6]]])
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(tmp_path / "b.png", transparency=7)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), gray([[255, 8]]))


def test_an_alpha_channel_without_a_transparent_pixel_changes_nothing(tmp_path, noise):
    Image.fromarray(noise).convert("RGBA").save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png")
    np.testing.assert_array_equal(decoded.pixels, noise)
    assert decoded.notes == ()


def test_the_first_of_several_frames_is_read_and_said(tmp_path, noise):
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    for name in ("a.tif", "a.webp", "a.png"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {})
        )
        decoded = decode_image(tmp_path / name)
        np.testing.assert_array_equal(decoded.pixels, noise, err_msg=name)
        assert decoded.notes == ("the first of several frames only",)
    # A photo with a second one for the other eye is one image.
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.mpo").notes == ()


def test_all_that_pillow_decodes_counts_as_an_image(tmp_path, noise):
    small = Image.fromarray(noise)
    for ending in (".jfif", ".jpe", ".avif", ".mpo", ".jp2", ".qoi", ".tga", ".dib", ".pnm", ".apng", ".sgi"):
        assert ending in IMAGE_ENDINGS
        small.save(tmp_path / f"a{ending}")
        assert read_image(tmp_path / f"a{ending}").shape == (20, 30, 3)
    # Formats that Pillow only recognizes, and those that another program decodes
    assert not IMAGE_ENDINGS & {".h5", ".grib", ".wmf", ".mpg", ".eps", ".pdf", ".txt", ".json"}


def test_more_pixels_than_pillow_opens_are_named_with_a_fix(tmp_path, noise, monkeypatch):
    Image.fromarray(noise).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)  # twice as many are opened
    for read in (read_image, image_size):
        with pytest.raises(
            UnreadableImageError, match=r"600 pixels\) exceeds limit of 598.* set REGIONCLIP_MAX_PIXELS"
        ):
            read(tmp_path / "a.png")
    monkeypatch.setenv("REGIONCLIP_MAX_PIXELS", "599")
    raise_pixel_limit()
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3)
    monkeypatch.setenv("REGIONCLIP_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="REGIONCLIP_MAX_PIXELS: expected a number of pixels above 0, got 'many'"):
        raise_pixel_limit()


@pytest.mark.filterwarnings("error")
def test_warnings_of_pillow_that_are_errors_do_not_stop_a_run(tmp_path, noise, monkeypatch):
    Image.fromarray(noise).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UnreadableImageError, match="600 pixels"):
        read_image(tmp_path / "a.png")


def test_floats_that_round_to_levels_are_pixels(noise):
    floats = noise.astype(np.float32) / 255
    np.testing.assert_array_equal(to_rgb_pixels(floats * 1.0000002 + 1e-7), noise)
    np.testing.assert_array_equal(to_rgb_pixels(np.where(noise == 0, -1e-3, floats)), noise)
    with pytest.raises(UserError, match=r"expected values in \[0, 1\], got 0 to 1\.01"):
        to_rgb_pixels(np.full((2, 2, 3), 1.01) * [0, 1, 1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "got None: was the file read"),
        (np.zeros((4, 4, 4), np.uint8), "blend the fourth channel"),
        ({"image": 1}, "got dict"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(UserError, match=message):
        to_rgb_pixels(image)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, noise, orientation):
    path = oriented(tmp_path / "a.png", noise, orientation)
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](noise))
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels, np.array(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_size_is_that_of_the_upright_image(tmp_path, noise, orientation, ending):
    path = oriented(tmp_path / f"a.{ending}", noise, orientation)
    expected = (30, 20) if orientation >= 5 else (20, 30)
    assert read_image(path).shape == (*expected, 3)
    assert image_size(path) == expected


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_undefined_orientation_is_ignored(tmp_path, noise, orientation):
    path = oriented(tmp_path / "a.jpg", noise, orientation)
    assert read_image(path).shape == (20, 30, 3)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("tag", [0x0100, ORIENTATION], ids=["width", "orientation"])
def test_malformed_exif_does_not_stop_a_run(tmp_path, noise, tag):
    # A text under a tag of numbers: the description takes its place.
    exif = Image.Exif()
    exif[0x010E] = "text"
    if tag != ORIENTATION:
        exif[ORIENTATION] = 6
    Image.fromarray(noise).save(tmp_path / "good.jpg", exif=exif)
    content = (tmp_path / "good.jpg").read_bytes()
    assert content.count(b"\x01\x0e\x00\x02") == 1
    (tmp_path / "bad.jpg").write_bytes(content.replace(b"\x01\x0e\x00\x02", tag.to_bytes(2, "big") + b"\x00\x02"))
    for read in (read_image, image_size):
        # Refusing the file is as good as reading it: a run reports it and goes on.
        with contextlib.suppress(UnreadableImageError):
            read(tmp_path / "bad.jpg")


def test_single_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[1, 2, 3]]])
    assert image_size(tmp_path / "a.png") == (1, 1)


def test_very_wide_image(tmp_path):
    pixels = np.zeros((20, 20000, 3), np.uint8)
    pixels[:, 10000:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    assert image_size(tmp_path / "a.png") == (20, 20000)


def test_broken_files_are_unreadable(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for ending in ("jpg", "png", "webp", "tif", "bmp", "gif"):
        whole = tmp_path / f"whole.{ending}"
        Image.fromarray(pixels).save(whole)
        content = whole.read_bytes()
        half = tmp_path / f"half.{ending}"
        half.write_bytes(content[: len(content) // 2])
        with pytest.raises(UnreadableImageError, match=f"half.{ending}"):
            read_image(half)


def test_what_is_no_image_is_unreadable(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("missing.jpg", "empty.png", "text.jpg", "folder.jpg"):
        for read in (read_image, image_size):
            with pytest.raises(UnreadableImageError, match=name):
                read(tmp_path / name)
