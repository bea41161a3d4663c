"""Pixels of an image in eight bits, whatever its file has. Values in, values out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Convert an image to grey or RGB with 8 bits a channel.

    Pillow alone cuts values above 255 off, which turns 16-bit scans white; here 0..65535 is scaled to 0..255.

    Args:
        image: Decoded, of any mode.
        mode: What is wanted.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64).clip(0, 65535)
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns when a palette with transparency goes anywhere else
    return image.convert(mode)
