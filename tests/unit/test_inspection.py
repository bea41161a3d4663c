"""Looking at one image: every format and mode that is read, and every kind of damage."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from components.ingest.inspection import FORMATS, inspect_image, laplacian_variance

MAX_PIXELS = 10_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", width: int = 24, height: int = 16) -> Image.Image:
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, *bands), dtype=np.uint8)
    return Image.fromarray(values, mode)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_is_described(kind: str, mode: str) -> None:
    facts = inspect_image(encode(noise(mode), kind), MAX_PIXELS)
    assert facts is not None
    assert (facts.width, facts.height, facts.format) == (24, 16, kind)
    assert facts.mean == pytest.approx(0.5, abs=0.1)
    assert facts.std > 0.05
    assert facts.sharpness > 0.01


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_channels_are_those_of_the_file(mode: str, channels: int) -> None:
    facts = inspect_image(encode(noise(mode), "PNG"), MAX_PIXELS)
    assert facts is not None
    assert facts.channels == channels


@pytest.mark.parametrize(("grey", "mean"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_a_plain_image_has_its_grey_value_and_nothing_sharp(grey: int, mean: float) -> None:
    facts = inspect_image(encode(Image.new("L", (10, 10), grey), "PNG"), MAX_PIXELS)
    assert facts is not None
    assert facts.mean == pytest.approx(mean, abs=1e-6)
    assert facts.std == pytest.approx(0, abs=1e-6)
    assert facts.sharpness == pytest.approx(0, abs=1e-6)


def test_half_black_half_white_by_hand() -> None:
    halves = np.zeros((10, 10), dtype=np.uint8)
    halves[:, 5:] = 255
    facts = inspect_image(encode(Image.fromarray(halves), "PNG"), MAX_PIXELS)
    assert facts is not None
    assert (facts.mean, facts.std) == (pytest.approx(0.5), pytest.approx(0.5))
    # 8 x 8 inner pixels: one column of +1 left of the edge, one of -1 right of it, mean 0: variance 16 / 64.
    assert facts.sharpness == pytest.approx(0.25)


def test_a_palette_image_is_read_through_its_palette() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    facts = inspect_image(encode(image, "PNG"), MAX_PIXELS)
    assert facts is not None
    assert facts.mean == pytest.approx(1.0)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"], ids=["one colour", "bytes"])
def test_a_transparent_palette_is_read_without_a_warning(transparency: object) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    assert inspect_image(encode(image, "PNG", transparency=transparency), MAX_PIXELS) is not None


def test_a_cmyk_jpeg_is_read() -> None:
    facts = inspect_image(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"), MAX_PIXELS)  # no ink: white
    assert facts is not None
    assert facts.channels == 4
    assert facts.mean == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    # Medical and microscope images: clipped at 255 of 65,535 every one of them would be white.
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    facts = inspect_image(encode(Image.fromarray(ramp), kind), MAX_PIXELS)
    assert facts is not None
    assert facts.mean == pytest.approx(0.5, abs=0.02)
    assert facts.std == pytest.approx(0.289, abs=0.02)  # of a uniform distribution: 1 / sqrt(12)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)]
    facts = inspect_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), MAX_PIXELS)
    assert facts is not None
    assert facts.mean == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_unreadable(kind: str, share: float) -> None:
    data = encode(noise(width=100, height=90), kind)
    assert inspect_image(data[: int(share * len(data))], MAX_PIXELS) is None


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"not an image", b"\0" * 999]
)
def test_what_holds_no_image_is_unreadable(data: bytes) -> None:
    assert inspect_image(data, MAX_PIXELS) is None


@pytest.mark.parametrize(("side", "readable"), [(100, True), (101, False)])
def test_images_above_the_limit_are_unreadable(side: int, readable: bool) -> None:
    assert (inspect_image(encode(Image.new("L", (side, 100)), "PNG"), MAX_PIXELS) is not None) is readable


@pytest.mark.parametrize("limit", [MAX_PIXELS, 10**12])
def test_a_bomb_is_unreadable_and_not_decoded(limit: int) -> None:
    # 60 bytes that claim 4.3 gigapixels: Pillow's own guard stands where the configured one is set too high.
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert inspect_image(bomb + b"\0\0\0\0IDAT\x35\xaf\x06\x1e", limit) is None


def test_a_format_that_is_not_on_the_list_is_unreadable() -> None:
    assert inspect_image(encode(noise("L"), "PPM"), MAX_PIXELS) is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged files; ingest silences it around its threads
@pytest.mark.parametrize("kind", FORMATS)
def test_damage_never_raises(kind: str) -> None:
    rng = random.Random(1)
    whole = encode(noise(), kind)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.choice([0, 1, 8])):
            data[rng.randrange(min(len(data), rng.choice([64, len(data)])))] = rng.randrange(256)
        outcomes.add(inspect_image(bytes(data), MAX_PIXELS) is None)
    assert outcomes == {True, False}


def test_laplacian_of_one_bright_pixel_by_hand() -> None:
    # 5 x 5 with 1 in the middle: of the 9 inner pixels one is -4, four are 1, four are 0. Mean 0, variance 20 / 9.
    grey = np.zeros((5, 5), dtype=np.float32)
    grey[2, 2] = 1
    assert laplacian_variance(grey) == pytest.approx(20 / 9)


def test_laplacian_of_a_slope_is_zero() -> None:
    grey = np.add.outer(np.arange(6), 2 * np.arange(9)).astype(np.float64) / 30
    assert laplacian_variance(grey) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 2)])
def test_images_too_small_for_a_laplacian_have_none(shape: tuple[int, int]) -> None:
    assert laplacian_variance(np.random.default_rng(0).random(shape)) == 0.0


def test_blur_lowers_sharpness() -> None:
    grey = np.random.default_rng(0).random((40, 40))
    blurred = (grey[:-1, :-1] + grey[1:, :-1] + grey[:-1, 1:] + grey[1:, 1:]) / 4
    assert laplacian_variance(blurred) < laplacian_variance(grey) / 4
