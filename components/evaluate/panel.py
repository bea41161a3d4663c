"""The rows that all models answer, as pixels of the size that each of them wants."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from components.core.datasets import PixelCache, Pixels, load_images
from components.core.models import Classifier
from components.core.windows import Window
from components.evaluate.answers import Said, ask


class Panel:
    """The rows that are asked about, as pixels of each size that a model wants. Every image is decoded once a
    size."""

    def __init__(
        self, windows: Sequence[Window], rows: pa.Table, classes: tuple[str, ...], cache: PixelCache, batch_size: int
    ) -> None:
        """Take the windows, the new one last, and the rows that `read_holdout` lists of them."""
        self._windows, self._rows, self._classes = windows, rows, classes
        self._cache, self._batch_size = cache, batch_size
        self._pixels: dict[tuple[int, int], Pixels] = {}

    def ask(self, version: str, model: Classifier) -> Said:
        """What a version says of every row."""
        digests = self._rows["sha256"].to_pylist()
        size = (model.spec.image_size, model.spec.channels)
        if size not in self._pixels:
            found = load_images(self._windows, "holdout", model.spec, self._classes, self._cache).labelled()
            assert found.rows["sha256"].to_pylist() == digests, "images in the order of the rows"
            self._pixels[size] = found.images
        return ask(model, self._pixels[size], self._batch_size, version=version, digests=digests)
