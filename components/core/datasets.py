"""Decoded images for the network: the usable rows of windows as uint8 pixels on disk, and their labels.

An image is decoded and resized once: the result is a memory-mapped array in the local cache, which every later pass
reads at the speed of memory. Covers decoding, the cache and class indices. Not covered: augmentation and batches
(`train`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from PIL import __version__ as pillow_version
from torch import Tensor

from components.core.config import StoreConfig
from components.core.errors import ConfigurationError
from components.core.logs import progress
from components.core.machine import usable_cores
from components.core.models import ModelSpec
from components.core.pixels import eight_bits
from components.core.windows import READING, Known, Split, Window

logger = logging.getLogger(__name__)
DECODE_BATCH, DECODE_BYTES = 256, 64 * 2**20
DECODER = 1  # goes up whenever `decode_image` or `eight_bits` gives other pixels
ABANDONED_SECONDS = 24 * 3600  # what a process that was killed left half-decoded
ROW_COLUMNS = ("sha256", "label", "group", "split", "source")


class Pixels:
    """n decoded images, each uint8 (channels, size, size), that are read when they are asked for.

    Indexing with an int64 tensor (b,) gathers a batch (b, channels, size, size) on the CPU.
    """

    device = torch.device("cpu")

    def __init__(self, parts: Sequence[Tensor], index: Tensor) -> None:
        """Take memory-mapped arrays (n_i, channels, size, size), and which rows of all of them together count."""
        self._parts, self._index = [part for part in parts if len(part)] or [parts[0]], index
        sizes = torch.tensor([len(part) for part in self._parts])
        self._ends, self._starts = sizes.cumsum(0), sizes.cumsum(0) - sizes
        self._arrays = [part.numpy() for part in self._parts]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.gather(index)

    def gather(self, index: Tensor, out: Tensor | None = None) -> Tensor:
        """Copy the images at an index, int64 (b,), into a batch.

        Args:
            index: May name an image more than once.
            out: Where to put them: uint8, shape (b, channels, size, size), on the CPU, pinned or not. A new tensor by
                default; for large images its pages cost more than the copy.

        Returns:
            `out`.
        """
        rows = self._index[index]
        shape = (len(rows), *self._parts[0].shape[1:])
        if out is None:
            out = self._parts[0].new_empty(shape)
        assert out.shape == shape
        if len(self._parts) == 1:
            return torch.index_select(self._parts[0], 0, rows, out=out)
        # A row at a time costs the same however many parts there are; a pass over the parts copies everything twice.
        part_of = torch.searchsorted(self._ends, rows, right=True)
        places = rows - self._starts[part_of]
        for to, part, place in zip(out.numpy(), part_of.tolist(), places.tolist(), strict=True):
            to[...] = self._arrays[part][place]
        return out

    def batches(self, rows: int) -> Iterator[Tensor]:
        """All images in order, `rows` at a time."""
        for index in torch.arange(len(self)).split(rows):
            if len(index):
                yield self[index]

    def subset(self, index: Tensor) -> Pixels:
        """The images at an index, int64 (m,)."""
        return Pixels(self._parts, self._index[index])

    @classmethod
    def concat(cls, sets: Iterable[Pixels]) -> Pixels:
        """Several sets of one shape, one after the other."""
        parts: list[Tensor] = []
        index: list[Tensor] = []
        before = 0
        for pixels in sets:
            parts += pixels._parts
            index.append(pixels._index + before)
            before += sum(len(part) for part in pixels._parts)
        return cls(parts, torch.cat(index))


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """n decoded images: their pixels; `labels` int64 (n,), indices into `classes`, -1 where the label is not among them
    or not known yet; `rows` of the manifest."""

    images: Pixels
    labels: Tensor
    classes: tuple[str, ...]
    rows: pa.Table

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, keep: Tensor) -> ImageSet:
        """The rows that an index tensor (int64) or a mask (bool) picks."""
        index = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return ImageSet(
            images=self.images.subset(index),
            labels=self.labels[index],
            classes=self.classes,
            rows=self.rows.take(pa.array(index.numpy())),
        )

    def labelled(self) -> ImageSet:
        """The rows whose label is among the classes."""
        return self.subset(self.labels >= 0)

    @classmethod
    def concat(cls, sets: Sequence[ImageSet]) -> ImageSet:
        """Several sets of one shape, with the same classes and columns, one after the other; at least one."""
        return cls(
            images=Pixels.concat(one.images for one in sets),
            labels=torch.cat([one.labels for one in sets]),
            classes=sets[0].classes,
            rows=pa.concat_tables([one.rows for one in sets]),
        )


def load_images(
    windows: Sequence[Window],
    split: Split | None,
    spec: ModelSpec,
    classes: Sequence[str],
    cache: PixelCache,
    earlier: Sequence[Window] = (),
    columns: Sequence[str] = ROW_COLUMNS,
    only: Collection[str] | None = None,
) -> ImageSet:
    """Open the usable rows of windows as pixels.

    Args:
        windows: In the order they arrived. An image that stands in several is taken from the first.
        split: Side of the split, or None for both.
        spec: Gives size and channels.
        classes: What the labels index.
        cache: Where decoded images are kept.
        earlier: Windows before these: what they hold is left out (see `Known.new_rows`).
        columns: Of the manifest, wanted in `rows`.
        only: SHA-256 of the images that are wanted; None: all. Others are not decoded, nor read from the store, but for
            shards of which more than `RANGED_READS` are wanted: those are read whole. Names that are not there are no
            error.

    Raises:
        IntegrityError: See `Window.images`.
    """
    wanted = tuple(dict.fromkeys(("sha256", "label", "split", *columns)))
    parts = [torch.empty((0, spec.channels, spec.image_size, spec.image_size), dtype=torch.uint8)]
    index, tables, before = [torch.empty(0, dtype=torch.int64)], [], 0
    known = Known(earlier)
    for window in windows:
        rows = _among(known.new_rows(window, split, wanted), only)
        known.add(window)
        tables.append(rows)
        place = torch.full((len(rows),), -1, dtype=torch.int64)
        for side in ("train", "holdout") if split is None else (split,):
            here = torch.from_numpy(np.array(rows["split"].to_pylist()) == side).nonzero().flatten()
            if not len(here):
                continue
            digests_here = rows["sha256"].take(pa.array(here.numpy())).to_pylist()
            pixels, digests = cache.pixels(window, side, spec, None if only is None else digests_here)
            position = {digest: n for n, digest in enumerate(digests)}
            place[here] = torch.tensor([before + position[d] for d in digests_here])
            parts.append(pixels)
            before += len(pixels)
        index.append(place)
    table = pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.string()) for name in wanted})
    return ImageSet(
        images=Pixels(parts, torch.cat(index)),
        labels=label_indices(table, classes),
        classes=tuple(classes),
        rows=table.select(list(columns)),
    )


def _among(rows: pa.Table, only: Collection[str] | None) -> pa.Table:
    """The rows of the images that are wanted, in their order."""
    return rows if only is None else rows.filter(pc.is_in(rows["sha256"], pa.array(list(only), pa.string())))


def label_indices(rows: pa.Table, classes: Sequence[str]) -> Tensor:
    """Places of the rows' labels among the classes, int64 (n,); -1 where a label is not one, or not known yet."""
    number_of = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number_of.get(label, -1) for label in rows["label"].to_pylist()], dtype=torch.int64)


class PixelCache:
    """Decoded images on the local disk: one array a window, side of the split, size and number of channels.

    Where only some images of a side are wanted, and the side is not there, they get an array of their own. Files are
    complete or not there; the least recently used go when the cache is full, but none that this object has opened. A
    window's id names its content, and a file's name says what decoded it, so an entry never goes stale.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.folder, self.limit = config.cache_folder / "pixels", config.cache_bytes
        self._open: dict[Path, int] = {}

    def pixels(
        self, window: Window, split: Split, spec: ModelSpec, only: Collection[str] | None = None
    ) -> tuple[Tensor, list[str]]:
        """Open an array, after decoding it if it is not there.

        Args:
            window: Where the images are.
            split: Side of the split.
            spec: Gives size and channels.
            only: SHA-256 of the images that are wanted, None for the side. The array holds these, or the whole side.

        Returns:
            uint8, memory-mapped, shape (n, channels, size, size), and the SHA-256 of its images, in order.

        Raises:
            IntegrityError: See `Window.images`.
            ConfigurationError: The disk, or the cache's limit, has no room for it beside what is open already.
        """
        side = window.rows(split)
        wanted = _among(side, only)
        entries = {self._path(window, split, spec): side}
        if len(wanted) < len(side):
            entries[self._path(window, split, spec, wanted)] = wanted
        while True:
            for path, rows in entries.items():
                with suppress(FileNotFoundError):  # not there yet, or another process has just made room
                    os.utime(path)  # used now: the last to go
                    # Copy on write: torch wants memory that it could write to, and nothing writes.
                    array = torch.from_numpy(np.load(path, mmap_mode="c"))
                    self._open[path] = array.numel()
                    return array, rows["sha256"].to_pylist()
            # None is there: make the last, which holds no more than is wanted.
            self._decode(path, window, rows, (len(rows), spec.channels, spec.image_size, spec.image_size))

    def _path(self, window: Window, split: Split, spec: ModelSpec, rows: pa.Table | None = None) -> Path:
        """Where the images of a side are, or those of some of its rows."""
        which = ""
        if rows is not None:
            which = f"-{hashlib.sha256(''.join(rows['sha256'].to_pylist()).encode()).hexdigest()[:32]}"
        size = f"{spec.image_size}x{spec.channels}"
        return self.folder / f"{window.document.id}-{split}{which}-{size}-{DECODER}-pillow-{pillow_version}.npy"

    def _decode(self, path: Path, window: Window, rows: pa.Table, shape: tuple[int, ...]) -> None:
        self._open[path] = int(np.prod(shape))
        self._make_room(int(np.prod(shape)))
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
            part = Path(file.name)
            try:
                array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
                # Now, not while pages are written: a mapped page without room behind it is a bus error.
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
                _decode_into(array, window, rows)
                array.flush()
                os.fsync(file.fileno())
                part.replace(path)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise self._no_room(int(np.prod(shape)), shutil.disk_usage(self.folder).free, "free") from error
            finally:
                part.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for longest until the cache stays within its limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("*.part"):
            if time.time() - _used(part).used > ABANDONED_SECONDS:
                part.unlink(missing_ok=True)
        if (ours := sum(self._open.values())) > self.limit:
            raise self._no_room(ours, self.limit, "allowed (store.cache_bytes)")
        entries = sorted((_used(path) for path in self.folder.glob("*.npy")), key=lambda entry: entry.used)
        total = needed + sum(entry.size for entry in entries)
        for entry in entries:
            if total > self.limit and entry.path not in self._open:
                logger.info("cache: %s goes, %d bytes", entry.path.name, entry.size)
                entry.path.unlink(missing_ok=True)
                total -= entry.size
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._no_room(needed, free, "free")

    def _no_room(self, needed: int, there: int, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{needed / 2**30:.1f} GiB of decoded images, and {there / 2**30:.1f} GiB {what} in {self.folder}",
            expected="room for one byte a pixel and channel",
            next_command="raise store.cache_bytes, name a larger disk as store.cache, or lower training.image_size",
        )


class _Entry(NamedTuple):
    path: Path
    size: int
    used: float


def _used(path: Path) -> _Entry:
    """A file's size and when it was last used; nothing, just now, where another process has removed it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return _Entry(path, 0, time.time())
    return _Entry(path, stat.st_size, stat.st_mtime)


def _decode_into(array: np.ndarray, window: Window, rows: pa.Table) -> None:
    """Decode a window's rows into an array uint8 (n, channels, size, size), on all cores, in bounded memory."""
    channels, size = array.shape[1], array.shape[2]
    stream = window.images(rows.select(list(READING)))
    with progress("decoding images", len(rows)) as advance, ThreadPoolExecutor(usable_cores()) as pool:
        for batch in _batches(stream):
            decoded = pool.map(lambda pair: decode_image(pair[1], size, channels), batch)
            for (position, _), image in zip(batch, decoded, strict=True):
                array[position] = image
            advance(len(batch))


def _batches(stream: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Cut a stream of images by number and by bytes: these are in memory compressed."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for pair in stream:
        batch.append(pair)
        size += len(pair[1])
        if len(batch) == DECODE_BATCH or size > DECODE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def decode_image(data: bytes, size: int, channels: int) -> np.ndarray:
    """Decode and resize one image (bilinear, antialiased) to uint8, shape (channels, size, size)."""
    with Image.open(io.BytesIO(data)) as image:
        plane = eight_bits(image, "L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(plane).reshape(size, size, channels).transpose(2, 0, 1)
