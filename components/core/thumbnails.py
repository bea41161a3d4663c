"""Small pictures of a window's images, for pages that fetch nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image

from components.core.pixels import eight_bits
from components.core.windows import Window

THUMBNAIL_PIXELS = 96


def picture_images(window: Window, digests: Sequence[str]) -> list[str]:
    """Thumbnails of the images with these SHA-256, in that order, as far as the window holds them."""
    rows = window.rows()
    place = {digest: n for n, digest in enumerate(rows["sha256"].to_pylist())}
    held = [digest for digest in digests if digest in place]
    images = dict(window.images(rows.take(pa.array([place[digest] for digest in held], pa.int64()))))
    return [thumbnail(images[n]) for n in range(len(held))]


def thumbnail(data: bytes) -> str:
    """An image as a small PNG data URI."""
    with Image.open(io.BytesIO(data)) as image:
        small = eight_bits(image, "RGB")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
