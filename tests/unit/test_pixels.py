"""Pixels in eight bits: what a file's mode, transparency and orientation become."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from components.core.pixels import eight_bits


def test_photograph_is_turned_as_its_exif_says() -> None:
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))  # 2 wide, 1 high
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as stored:
        turned = eight_bits(stored, "L")
    assert turned.size == (1, 2)
    assert np.asarray(turned).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_white_paper(mode: str) -> None:
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.new(mode, (2, 2), (0,) * bands)  # black, and wholly transparent
    assert np.asarray(eight_bits(image, "L")).tolist() == [[255, 255], [255, 255]]


def test_half_transparent_black_is_grey() -> None:
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert np.asarray(eight_bits(image, "RGB")).flatten().tolist() == [127, 127, 127]


@pytest.mark.parametrize(("value", "seen"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled(value: int, seen: int) -> None:
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    assert np.asarray(eight_bits(image, "L")).tolist() == [[seen, seen], [seen, seen]]


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        eight_bits(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "L")
