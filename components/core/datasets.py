"""Decoded images for the network: the usable rows of windows as one uint8 tensor and its labels.

Covers decoding, resizing and class indices. Not covered: augmentation and batches (`train`), caching on disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.core.logs import progress
from components.core.models import ModelSpec
from components.core.pixels import eight_bits
from components.core.windows import ImageRow, Split, Window


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """n decoded images: `images` uint8 (n, channels, size, size), `labels` int64 (n,), indices into `classes`; -1 where
    the label is not among them. `rows` are the manifest's."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    rows: tuple[ImageRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, keep: Tensor) -> ImageSet:
        """The rows that an index tensor (int64) or a mask (bool) picks."""
        index = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        rows = tuple(self.rows[i] for i in index.tolist())
        return ImageSet(images=self.images[index], labels=self.labels[index], classes=self.classes, rows=rows)


def load_images(windows: Sequence[Window], split: Split | None, spec: ModelSpec, classes: Sequence[str]) -> ImageSet:
    """Decode the usable rows of windows.

    An image that stands in two windows (same bytes) is taken once.

    Args:
        windows: In the order they arrived.
        split: Side of the split, or None for both.
        spec: Gives size and channels.
        classes: What the labels index.

    Raises:
        IntegrityError: See `Window.images`.
    """
    seen: set[str] = set()
    index = {name: i for i, name in enumerate(classes)}
    rows: list[ImageRow] = []
    planes: list[Tensor] = []
    for window in windows:
        wanted = [row for row in window.rows(split) if row.sha256 not in seen]
        seen.update(row.sha256 for row in wanted)
        with progress("decoding images", len(wanted)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            pairs = list(window.images(wanted))
            for plane in pool.map(lambda pair: decode_image(pair[1], spec.image_size, spec.channels), pairs):
                planes.append(plane)
                advance(1)
            rows += [row for row, _ in pairs]
    size = (0, spec.channels, spec.image_size, spec.image_size)
    return ImageSet(
        images=torch.stack(planes) if planes else torch.empty(size, dtype=torch.uint8),
        labels=torch.tensor([index.get(row.label, -1) for row in rows], dtype=torch.int64),
        classes=tuple(classes),
        rows=tuple(rows),
    )


def decode_image(data: bytes, size: int, channels: int) -> Tensor:
    """Decode and resize one image (bilinear, antialiased) to uint8, shape (channels, size, size)."""
    with Image.open(io.BytesIO(data)) as image:
        plane = eight_bits(image, "L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(plane).reshape(size, size, channels)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())
