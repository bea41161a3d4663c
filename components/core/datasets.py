"""Decoded images for the network: the usable rows of windows as one uint8 tensor and its labels.

Covers decoding, resizing and class indices. Not covered: augmentation and batches (`train`), caching on disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.core.logs import progress
from components.core.models import ModelSpec
from components.core.pixels import eight_bits
from components.core.windows import ImageRow, Split, Window, select_rows

DECODE_BATCH = 256


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


def load_images(
    windows: Sequence[Window],
    split: Split | None,
    spec: ModelSpec,
    classes: Sequence[str],
    earlier: Sequence[Window] = (),
) -> ImageSet:
    """Decode the usable rows of windows into one tensor.

    Args:
        windows: In the order they arrived. An image that stands in several is taken from the first.
        split: Side of the split, or None for both.
        spec: Gives size and channels.
        classes: What the labels index.
        earlier: Windows before these: what they hold is left out (see `select_rows`).

    Raises:
        IntegrityError: See `Window.images`.
    """
    chosen = [select_rows(w, split, [*earlier, *windows[:n]]) for n, w in enumerate(windows)]
    total = sum(len(rows) for rows in chosen)
    images = torch.empty((total, spec.channels, spec.image_size, spec.image_size), dtype=torch.uint8)
    index = {name: i for i, name in enumerate(classes)}
    rows: list[ImageRow] = []
    with progress("decoding images", total) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for window, wanted in zip(windows, chosen, strict=True):
            stream = window.images(wanted)
            while batch := list(islice(stream, DECODE_BATCH)):  # so that only these are in memory compressed
                decoded = pool.map(lambda pair: decode_image(pair[1], spec.image_size, spec.channels), batch)
                for (row, _), image in zip(batch, decoded, strict=True):
                    images[len(rows)] = image
                    rows.append(row)
                advance(len(batch))
    labels = torch.tensor([index.get(row.label, -1) for row in rows], dtype=torch.int64)
    return ImageSet(images=images, labels=labels, classes=tuple(classes), rows=tuple(rows))


def decode_image(data: bytes, size: int, channels: int) -> Tensor:
    """Decode and resize one image (bilinear, antialiased) to uint8, shape (channels, size, size)."""
    with Image.open(io.BytesIO(data)) as image:
        plane = eight_bits(image, "L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(plane).reshape(size, size, channels)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())
