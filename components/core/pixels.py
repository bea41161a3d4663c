"""Pixels of an image in eight bits, whatever its file has. Values in, values out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageOps


def eight_bits(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Convert an image to grey or RGB with 8 bits a channel.

    Pillow alone cuts values above 255 off, which turns 16-bit scans white; here 0..65535 is scaled to 0..255. A
    photograph is turned as its EXIF orientation says.

    Args:
        image: Decoded, of any mode.
        mode: What is wanted.

    Raises:
        ValueError: The pixels are floating point.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels: their range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64).clip(0, 65535)
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode == "P" or "A" in image.mode:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)  # what is transparent shows paper, not whatever lies underneath
    return image.convert(mode)
