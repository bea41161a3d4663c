"""Look at one image: does it decode, how large is it, and a few cheap statistics. Values in, values out."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from components.core.pixels import eight_bits

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What decoding tells. Sizes in pixels; `mean`, `std` of grey values in [0, 1]; `sharpness` in [0, inf)."""

    width: int
    height: int
    channels: int
    format: str
    mean: float
    std: float
    sharpness: float


def inspect_image(data: bytes, max_pixels: int) -> ImageFacts | None:
    """Decode an image completely and describe it.

    `verify()` alone passes truncated JPEGs, so the pixels are loaded. The size is checked before they are: a few
    kilobytes can claim to be gigapixels.

    Args:
        data: The file's bytes.
        max_pixels: Largest width x height that is decoded.

    Returns:
        The facts, or None where the file does not decode or is larger than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return None
            image.load()
            grey = np.asarray(eight_bits(image, "L"), dtype=np.float32) / 255.0
            bands, kind = len(image.getbands()), image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, OverflowError):
        return None  # Pillow's decoders raise all of these on damaged files
    return ImageFacts(
        width=grey.shape[1],
        height=grey.shape[0],
        channels=bands,
        format=kind or "",
        mean=float(grey.mean()),
        std=float(grey.std()),
        sharpness=laplacian_variance(grey),
    )


def laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian, 0 for an image too small to have one. Higher is sharper.

    Args:
        grey: Grey values in [0, 1], shape (height, width).

    Source:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    if min(grey.shape) < 3:
        return 0.0
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    return float(laplacian.var())
