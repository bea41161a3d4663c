"""Decoded images: sizes, modes, labels, and that an image that stands in two windows is taken once, on one side.

Also pixels on disk, which behave like a tensor, and the cache, which decodes an image once and never shows half a file.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from components.core import datasets
from components.core.config import Config, IngestConfig, StoreConfig
from components.core.datasets import DECODER, ImageSet, PixelCache, Pixels, decode_image, load_images
from components.core.errors import ConfigurationError, IntegrityError
from components.core.models import ModelSpec
from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import Split, Window
from components.ingest.step import ingest

HALF = (0.5, 0.5, 0.5)
SPEC = ModelSpec(architecture="small-cnn", classes=("cat", "dog"), image_size=4, channels=3, mean=HALF, std=HALF)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_becomes_planes_of_the_wanted_size(mode: str, channels: int) -> None:
    plane = decode_image(encode(Image.new(mode, (9, 5))), 4, channels)
    assert (plane.shape, plane.dtype) == ((channels, 4, 4), np.uint8)


def test_pixels_keep_their_place_and_their_colour() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 1] = (10, 20, 30)
    plane = decode_image(encode(Image.fromarray(pixels)), 2, 3)
    assert plane[:, 0, 1].tolist() == [10, 20, 30]
    assert int(plane.sum()) == 60


def test_shrinking_averages() -> None:
    stripes = np.zeros((8, 8), dtype=np.uint8)
    stripes[:, ::2] = 200
    assert decode_image(encode(Image.fromarray(stripes)), 2, 1).flatten().tolist() == pytest.approx([100] * 4, abs=15)


def test_cmyk_is_seen_in_its_colours() -> None:
    plane = decode_image(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), 4, 3)
    assert int(plane.min()) > 250


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_and_not_cut_off(channels: int) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    plane = decode_image(encode(Image.fromarray(ramp)), 8, channels)
    assert float(plane.mean()) == pytest.approx(127.5, abs=3)


def configured(tmp_path: Path, **ingest_keys: object) -> Config:
    """One worker, and everything below `tmp_path`."""
    store = StoreConfig(uri="unused", cache=str(tmp_path / "cache"))
    return Config(store=store, ingest=IngestConfig(workers=1, **ingest_keys))  # type: ignore[arg-type]


def deliver(folder: Path, seeds: dict[str, range]) -> str:
    for label, numbers in seeds.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for seed in numbers:
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{seed}.png")
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    return PixelCache(StoreConfig(uri="unused", cache=str(tmp_path / "cache")))


@pytest.fixture(scope="module")
def two_windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `windows`, made once."""
    place = tmp_path_factory.mktemp("windows")
    store = DirectoryStore(place / "store")
    ingest(store, configured(place), deliver(place / "1", {"cat": range(20), "dog": range(100, 120)}))
    ingest(store, configured(place), deliver(place / "2", {"cat": range(15, 25), "owl": range(200, 210)}))
    return store.root


@pytest.fixture
def windows(two_windows: Path, tmp_path: Path) -> list[Window]:
    """Two windows that share five cats; the second brings owls."""
    shutil.copytree(two_windows, tmp_path / "store")
    store = DirectoryStore(tmp_path / "store")
    found = [Window.open(store, "images", path.name) for path in (store.root / "datasets/images/windows").iterdir()]
    return sorted(found, key=lambda window: "owl" in window.document.class_counts)


def load(cache: PixelCache, windows: list[Window], split: Split | None, earlier: tuple[Window, ...] = ()) -> ImageSet:
    return load_images(windows, split, SPEC, SPEC.classes, cache, earlier)


def everything(pixels: Pixels) -> Tensor:
    return pixels[torch.arange(len(pixels))]


def named(images: ImageSet, column: str = "sha256") -> list[str]:
    return images.rows[column].to_pylist()


def test_an_image_in_two_windows_is_taken_once(windows: list[Window], cache: PixelCache) -> None:
    images = load(cache, windows, None)
    assert len(images) == 40 + 20 - 5
    assert len(set(named(images))) == 55
    assert everything(images.images).shape == (55, 3, 4, 4)


def test_labels_index_the_classes_and_unknown_ones_are_minus_one(windows: list[Window], cache: PixelCache) -> None:
    images = load(cache, windows, None)
    wanted = {"cat": 0, "dog": 1, "owl": -1}
    assert images.labels.tolist() == [wanted[label] for label in named(images, "label")]
    assert int((images.labels == -1).sum()) == 10
    assert set(named(images.labelled(), "label")) == {"cat", "dog"}
    assert len(images.labelled()) == 45


def originals(windows: list[Window]) -> dict[str, bytes]:
    found = {}
    for window in windows:
        rows = window.rows()
        digests = rows["sha256"].to_pylist()
        found.update((digests[position], data) for position, data in window.images(rows))
    return found


@pytest.mark.parametrize("split", [None, "train", "holdout"])
def test_images_stand_beside_their_rows(windows: list[Window], cache: PixelCache, split: Split | None) -> None:
    images, files = load(cache, windows, split), originals(windows)
    for plane, digest in zip(everything(images.images), named(images), strict=True):
        assert plane.numpy().tolist() == decode_image(files[digest], 4, 3).tolist()


def test_the_two_sides_of_the_split_share_no_image(windows: list[Window], cache: PixelCache) -> None:
    train, holdout = load(cache, windows, "train"), load(cache, windows, "holdout")
    assert len(train) + len(holdout) == 55
    assert set(named(train)).isdisjoint(named(holdout))


@pytest.mark.parametrize("split", [None, "train", "holdout"])
def test_no_window_is_an_empty_set_of_the_right_shape(cache: PixelCache, split: Split | None) -> None:
    images = load(cache, [], split)
    pixels = everything(images.images)
    assert (len(images), pixels.shape, pixels.dtype) == (0, (0, 3, 4, 4), torch.uint8)
    assert (images.labels.dtype, len(images.rows)) == (torch.int64, 0)
    assert len(images.labelled()) == 0


@pytest.mark.parametrize("as_mask", [True, False])
def test_a_subset_keeps_rows_labels_and_images_together(
    windows: list[Window], cache: PixelCache, as_mask: bool
) -> None:
    images = load(cache, windows, None)
    mask = images.labels == 1
    dogs = images.subset(mask if as_mask else mask.nonzero().flatten())
    assert set(named(dogs, "label")) == {"dog"}
    assert len(dogs) == 20
    assert dogs.labels.tolist() == [1] * 20
    assert torch.equal(everything(dogs.images), everything(images.images)[mask])


def sides(window: Window) -> dict[str, str]:
    rows = window.rows()
    return dict(zip(rows["sha256"].to_pylist(), rows["split"].to_pylist(), strict=True))


def on_side(window: Window, side: str) -> set[str]:
    return {sha for sha, where in sides(window).items() if where == side}


def test_what_an_earlier_window_holds_is_left_out(windows: list[Window], cache: PixelCache) -> None:
    first, second = windows
    images = load(cache, [second], None, (first,))
    assert len(images) == 20 - 5
    assert set(named(images)).isdisjoint(sides(first))
    assert len(load(cache, [second], None)) == 20


@pytest.mark.parametrize("split", [None, "train"])
def test_nothing_of_an_earlier_window_is_decoded_even_where_all_came_again(
    windows: list[Window], cache: PixelCache, split: Split | None
) -> None:
    images = load(cache, [windows[0]], split, (windows[0],))
    assert (len(images), everything(images.images).shape) == (0, (0, 3, 4, 4))
    assert not cache.folder.exists()


def test_an_image_held_out_once_is_not_trained_on_when_it_comes_in_a_group(tmp_path: Path, cache: PixelCache) -> None:
    """The side goes by the group where there is one: the same bytes, with and without, can be on both sides."""
    store = DirectoryStore(tmp_path / "store")
    half = configured(tmp_path, holdout_fraction=0.5)
    grouped = configured(tmp_path, holdout_fraction=0.5, group_pattern=r"/(\d)\d*\.")
    folder = deliver(tmp_path / "1", {"cat": range(40)})
    first, second = (Window.open(store, "images", ingest(store, c, folder).id) for c in (half, grouped))
    assert on_side(first, "holdout") & on_side(second, "train"), "or this test shows nothing"
    assert len(load(cache, [second], "train", (first,))) == 0
    assert set(named(load(cache, [first, second], "train"))) == on_side(first, "train")
    assert set(named(load(cache, [first, second], "holdout"))) == on_side(first, "holdout")


def test_a_smaller_holdout_does_not_turn_held_out_images_into_training_images(
    tmp_path: Path, cache: PixelCache
) -> None:
    store = DirectoryStore(tmp_path / "store")
    windows = []
    for number, (fraction, seeds) in enumerate(((0.5, range(40)), (0.1, range(20, 60)))):
        folder = deliver(tmp_path / str(number), {"cat": seeds})
        document = ingest(store, configured(tmp_path, holdout_fraction=fraction), folder)
        windows.append(Window.open(store, "images", document.id))
    first, second = windows
    held_out = on_side(first, "holdout")
    assert held_out & on_side(second, "train"), "or this test shows nothing"
    new = load(cache, [second], "train", (first,))
    for images in (new, load(cache, [first, second], "train")):
        assert held_out.isdisjoint(named(images))
    assert set(named(new)) == on_side(second, "train") - set(sides(first))


def test_more_images_than_are_decoded_at_once_stay_in_order(
    windows: list[Window], cache: PixelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = load(cache, windows, None)
    monkeypatch.setattr("components.core.datasets.DECODE_BATCH", 7)
    by_sevens = load(PixelCache(StoreConfig(uri="unused", cache=str(tmp_path / "other"))), windows, None)
    assert by_sevens.rows.equals(together.rows)
    assert torch.equal(everything(by_sevens.images), everything(together.images))
    assert torch.equal(by_sevens.labels, together.labels)


def test_rows_have_the_columns_that_were_asked_for(windows: list[Window], cache: PixelCache) -> None:
    images = load_images(windows, None, SPEC, SPEC.classes, cache, columns=("source", "mean"))
    assert images.rows.column_names == ["source", "mean"]
    assert images.labelled().rows.column_names == ["source", "mean"]
    assert images.labels.tolist() == load(cache, windows, None).labels.tolist()


def test_sets_of_images_one_after_the_other(windows: list[Window], cache: PixelCache) -> None:
    train, holdout = load(cache, windows, "train"), load(cache, windows, "holdout")
    both = ImageSet.concat([train, holdout])
    assert named(both) == named(train) + named(holdout)
    assert both.labels.tolist() == train.labels.tolist() + holdout.labels.tolist()
    assert torch.equal(everything(both.images), torch.cat([everything(train.images), everything(holdout.images)]))
    assert both.classes == SPEC.classes


# --- images that nobody has labelled yet


@pytest.fixture
def late(tmp_path: Path) -> Window:
    """Ten cats and ten dogs with labels, twelve images without."""
    folder = Path(deliver(tmp_path / "late", {"a": range(10), "b": range(10, 20), "c": range(20, 32)}))
    label = {"a": "cat", "b": "dog", "c": ""}
    lines = [f"{path.relative_to(folder)},{label[path.parent.name]}" for path in sorted(folder.glob("*/*.png"))]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    store = DirectoryStore(tmp_path / "store")
    return Window.open(store, "images", ingest(store, configured(tmp_path), str(folder / "labels.csv")).id)


def test_images_without_a_label_are_of_no_class(late: Window, cache: PixelCache) -> None:
    assert (late.document.unlabelled, late.document.class_counts) == (12, {"cat": 10, "dog": 10})
    images = load(cache, [late], None)
    assert [images.labels.tolist().count(label) for label in (-1, 0, 1)] == [12, 10, 10]
    assert [label is None for label in named(images, "label")] == (images.labels < 0).tolist()
    files = originals([late])
    for plane, digest in zip(everything(images.images), named(images), strict=True):
        assert plane.numpy().tolist() == decode_image(files[digest], 4, 3).tolist()


def test_rows_without_a_label_do_not_train(late: Window, cache: PixelCache) -> None:
    train = load(cache, [late], "train").labelled()
    assert len(train) == late.document.train_rows
    assert int(train.labels.min()) == 0
    assert None not in named(train, "label")


# --- pixels


class Twin(NamedTuple):
    """Pixels, and the tensor that they must equal."""

    pixels: Pixels
    tensor: Tensor


def twin(sizes: tuple[int, ...], seed: int, index: list[int] | None = None) -> Twin:
    """Parts of these sizes, filled at random, and a choice of their rows: all by default."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, 256, (size, 2, 3, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    rows = torch.arange(sum(sizes)) if index is None else torch.tensor(index, dtype=torch.int64)
    return Twin(Pixels(parts, rows), torch.cat(parts)[rows])


def same(pixels: Pixels, tensor: Tensor) -> None:
    assert len(pixels) == len(tensor)
    found = everything(pixels)
    assert (found.dtype, found.shape) == (torch.uint8, tensor.shape)
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("index", [[0], [6, 0, 3], [2, 2, 2], [6, 5, 4, 3, 2, 1, 0], [2, 3, 2, 3], []], ids=str)
def test_a_batch_is_gathered_across_parts(index: list[int]) -> None:
    made = twin((3, 0, 4), 0)
    rows = torch.tensor(index, dtype=torch.int64)
    assert torch.equal(made.pixels[rows], made.tensor[rows])
    assert made.pixels[rows].shape == (len(index), 2, 3, 3)


@pytest.mark.parametrize("sizes", [(5,), (0, 5), (5, 0), (0, 0, 5, 0), (1, 1, 1, 1, 1)])
def test_parts_without_rows_are_passed_over(sizes: tuple[int, ...]) -> None:
    same(*twin(sizes, 1))


def test_a_batch_is_a_copy() -> None:
    made = twin((4,), 0)
    made.pixels[torch.tensor([1])].zero_()
    same(*made)


def test_a_row_beyond_the_last_is_an_error() -> None:
    with pytest.raises(IndexError):
        twin((2, 2), 0).pixels[torch.tensor([4])]


@pytest.mark.parametrize("sizes", [(7,), (3, 0, 4)])
def test_a_batch_goes_where_it_is_wanted(sizes: tuple[int, ...]) -> None:
    made, rows = twin(sizes, 0), torch.tensor([6, 0, 3, 3])
    for out in (
        torch.zeros(4, 2, 3, 3, dtype=torch.uint8),
        torch.zeros(4, 2, 3, 3, dtype=torch.uint8).contiguous(memory_format=torch.channels_last),
        torch.zeros(9, 2, 3, 3, dtype=torch.uint8)[2:6],
    ):
        assert made.pixels.gather(rows, out) is out
        assert torch.equal(out, made.tensor[rows])


@pytest.mark.parametrize("sizes", [(7,), (3, 0, 4)])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_buffer_of_another_size_is_refused(sizes: tuple[int, ...], rows: int) -> None:
    with pytest.raises(AssertionError):
        twin(sizes, 0).pixels.gather(torch.tensor([0, 1]), torch.zeros(rows, 2, 3, 3, dtype=torch.uint8))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_batches_are_all_images_in_order(rows: int) -> None:
    made = twin((3, 4), 0, [6, 1, 1, 0, 3, 2, 5])
    found = list(made.pixels.batches(rows))
    assert [len(batch) for batch in found] == [len(batch) for batch in made.tensor.split(rows)]
    assert torch.equal(torch.cat(found), made.tensor)


def test_nothing_has_no_batches() -> None:
    made = twin((3,), 0, [])
    same(*made)
    assert list(made.pixels.batches(4)) == []


def test_a_subset_of_a_subset_counts_from_the_subset() -> None:
    made = twin((3, 4), 0)
    outer, inner = torch.tensor([6, 4, 2, 0, 2]), torch.tensor([3, 0, 0, 4])
    same(made.pixels.subset(outer).subset(inner), made.tensor[outer][inner])


def test_sets_one_after_the_other() -> None:
    first, second = twin((3, 2), 0, [4, 0, 4]), twin((2,), 1, [1, 0])
    same(Pixels.concat([first.pixels, second.pixels]), torch.cat([first.tensor, second.tensor]))
    same(Pixels.concat([second.pixels, first.pixels]), torch.cat([second.tensor, first.tensor]))
    same(Pixels.concat([first.pixels, first.pixels]), torch.cat([first.tensor, first.tensor]))
    same(Pixels.concat(iter([first.pixels])), first.tensor)


def test_an_empty_set_adds_nothing() -> None:
    made, nothing = twin((3, 2), 0), twin((0,), 0)
    for sets in ([made, nothing], [nothing, made], [nothing, made, nothing]):
        same(Pixels.concat(one.pixels for one in sets), made.tensor)
    same(Pixels.concat([nothing.pixels, nothing.pixels]), nothing.tensor)


@st.composite
def twins(draw: st.DrawFn) -> Twin:
    """Any pixels that subsets and concatenations make, beside a tensor on which the same was done."""
    made = []
    for seed in range(draw(st.integers(1, 3))):
        sizes = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
        made.append(twin(sizes, seed, draw(indices(sum(sizes)))))
    pixels, tensor = Pixels.concat(one.pixels for one in made), torch.cat([one.tensor for one in made])
    for _ in range(draw(st.integers(0, 2))):
        rows = torch.tensor(draw(indices(len(tensor))), dtype=torch.int64)
        pixels, tensor = pixels.subset(rows), tensor[rows]
    return Twin(pixels, tensor)


def indices(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size - 1), max_size=12) if size else st.just([])


@given(twins(), st.integers(1, 6), st.data())
@settings(deadline=None, max_examples=150)
def test_pixels_are_what_a_tensor_would_be(made: Twin, rows: int, data: st.DataObject) -> None:
    same(*made)
    index = torch.tensor(data.draw(indices(len(made.tensor))), dtype=torch.int64)
    assert torch.equal(made.pixels[index], made.tensor[index])
    batches = list(made.pixels.batches(rows))
    assert all(0 < len(batch) <= rows for batch in batches)
    assert torch.equal(torch.cat([made.tensor[:0], *batches]), made.tensor)


# --- the cache


def entries(cache: PixelCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def without_shards(window: Window) -> Window:
    """Remove the images from the store: whoever reads them again fails."""
    for name in window.document.files:
        if name != window.document.manifest:
            window.store.delete(f"datasets/images/windows/{window.document.id}/{name}")
    return window


def test_an_image_is_decoded_once(windows: list[Window], cache: PixelCache) -> None:
    first = everything(load(cache, windows, None).images)
    for window in windows:
        without_shards(window)
    assert torch.equal(everything(load(cache, windows, None).images), first)
    later = PixelCache(StoreConfig(uri="elsewhere", cache=str(cache.folder.parent)))
    assert torch.equal(everything(load(later, windows, None).images), first)


def test_the_sides_together_are_read_from_the_files_of_each(windows: list[Window], cache: PixelCache) -> None:
    split: Split
    apart = {}
    for split in ("train", "holdout"):
        images = load(cache, windows, split)
        apart.update(zip(named(images), everything(images.images), strict=True))
    for window in windows:
        without_shards(window)
    together = load(cache, windows, None)
    assert len(together) == len(apart)
    for plane, digest in zip(everything(together.images), named(together), strict=True):
        assert torch.equal(plane, apart[digest])


def test_entries_are_named_by_what_they_hold_and_nothing_else_is_left(windows: list[Window], cache: PixelCache) -> None:
    window = windows[0]
    load(cache, [window], None)
    how = f"4x3-{DECODER}-pillow-{PIL.__version__}"
    assert entries(cache) == [f"{window.document.id}-{side}-{how}.npy" for side in ("holdout", "train")]


def test_pixels_are_on_disk_and_not_in_memory(windows: list[Window], cache: PixelCache) -> None:
    array, digests = cache.pixels(windows[0], "train", SPEC)
    assert (array.dtype, array.shape) == (torch.uint8, (len(digests), 3, 4, 4))
    assert str(cache.folder) in Path("/proc/self/maps").read_text()
    array[0] = 0  # of this process only
    again, _ = cache.pixels(windows[0], "train", SPEC)
    assert int(again[0].sum()) > 0


def test_sizes_and_channels_lie_side_by_side(windows: list[Window], cache: PixelCache) -> None:
    specs = [SPEC.model_copy(update={"image_size": size, "channels": c}) for size in (4, 5) for c in (1, 3)]
    found = [cache.pixels(windows[0], "train", spec)[0].clone() for spec in specs]
    assert [tuple(array.shape[1:]) for array in found] == [(1, 4, 4), (3, 4, 4), (1, 5, 5), (3, 5, 5)]
    assert len(entries(cache)) == 4
    without_shards(windows[0])
    for spec, before in zip(specs, found, strict=True):
        array, digests = cache.pixels(windows[0], "train", spec)
        assert torch.equal(array, before)
        assert digests == windows[0].rows("train")["sha256"].to_pylist()


def test_a_side_without_images_is_an_empty_array(tmp_path: Path, cache: PixelCache) -> None:
    store = DirectoryStore(tmp_path / "store")
    config = configured(tmp_path, group_pattern="(cat)")
    window = Window.open(store, "images", ingest(store, config, deliver(tmp_path / "1", {"cat": range(3)})).id)
    side, other = ("train", "holdout") if window.document.train_rows else ("holdout", "train")
    assert len(load(cache, [window], side)) == 3  # type: ignore[arg-type]
    assert len(load(cache, [window], other)) == 0  # type: ignore[arg-type]
    assert len(load(cache, [window], None)) == 3
    for _ in range(2):
        array, digests = cache.pixels(window, other, SPEC)  # type: ignore[arg-type]
        assert (tuple(array.shape), digests) == ((0, 3, 4, 4), [])


def test_a_cache_that_was_deleted_is_made_again(windows: list[Window], cache: PixelCache) -> None:
    loaded = load(cache, windows, None)
    first = everything(loaded.images)
    shutil.rmtree(cache.folder.parent)
    assert torch.equal(everything(loaded.images), first), "what is open stays open"
    assert torch.equal(everything(load(cache, windows, None).images), first)
    assert len(entries(cache)) == 4


def bytes_of(window: Window, split: Split, spec: ModelSpec = SPEC) -> int:
    return len(window.rows(split)) * spec.channels * spec.image_size**2


def limited(cache: PixelCache, limit: int) -> PixelCache:
    return PixelCache(StoreConfig(uri="unused", cache=str(cache.folder.parent), cache_bytes=limit))


def used_at(cache: PixelCache, window: Window, split: Split, moment: int) -> Path:
    """Say that an entry was last used so many seconds after the epoch."""
    (path,) = cache.folder.glob(f"{window.document.id}-{split}-*")
    os.utime(path, (moment, moment))
    return path


def test_the_least_recently_used_goes_when_the_cache_is_full(windows: list[Window], cache: PixelCache) -> None:
    first, second = windows
    cache.pixels(first, "train", SPEC)
    cache.pixels(first, "holdout", SPEC)
    old, older = used_at(cache, first, "train", 2000), used_at(cache, first, "holdout", 1000)
    room = old.stat().st_size + bytes_of(second, "train")
    limited(cache, room).pixels(second, "train", SPEC)
    assert (old.exists(), older.exists()) == (True, False)
    assert len(entries(cache)) == 2


def test_using_an_entry_keeps_it(windows: list[Window], cache: PixelCache) -> None:
    first, second = windows
    cache.pixels(first, "train", SPEC)
    cache.pixels(first, "holdout", SPEC)
    train, holdout = used_at(cache, first, "train", 1000), used_at(cache, first, "holdout", 2000)
    cache.pixels(first, "train", SPEC)  # the older one is used again
    limited(cache, train.stat().st_size + bytes_of(second, "train")).pixels(second, "train", SPEC)
    assert (train.exists(), holdout.exists()) == (True, False)


def test_nothing_goes_while_there_is_room(windows: list[Window], cache: PixelCache) -> None:
    first, second = windows
    cache.pixels(first, "train", SPEC)
    cache.pixels(first, "holdout", SPEC)
    sizes = sum(path.stat().st_size for path in cache.folder.iterdir())
    limited(cache, sizes + bytes_of(second, "train")).pixels(second, "train", SPEC)
    assert len(entries(cache)) == 3


def test_images_that_do_not_fit_the_limit_are_an_error_and_never_decoded_again_and_again(
    windows: list[Window], cache: PixelCache
) -> None:
    small = limited(cache, bytes_of(windows[0], "train"))
    small.pixels(windows[0], "train", SPEC)
    with pytest.raises(ConfigurationError, match=r"store\.cache_bytes"):
        small.pixels(windows[1], "train", SPEC)
    assert len(entries(cache)) == 1  # what is open stays


def test_what_an_earlier_step_opened_makes_room(windows: list[Window], cache: PixelCache) -> None:
    limit = bytes_of(windows[0], "train") + 100
    limited(cache, limit).pixels(windows[0], "train", SPEC)
    limited(cache, limit).pixels(windows[1], "train", SPEC)
    assert [name[:32] for name in entries(cache)] == [windows[1].document.id]


def test_a_full_disk_says_what_to_do(windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = bytes_of(windows[0], "train")
    usage = shutil.disk_usage(cache.folder.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(ConfigurationError, match=r"store\.cache") as caught:
        cache.pixels(windows[0], "train", SPEC)
    assert str(cache.folder) in caught.value.found
    assert entries(cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    cache.pixels(windows[0], "train", SPEC)
    assert len(entries(cache)) == 1


def test_a_damaged_window_leaves_nothing_in_the_cache(windows: list[Window], cache: PixelCache) -> None:
    without_shards(windows[0])
    with pytest.raises(IntegrityError, match="is missing"):
        cache.pixels(windows[0], "train", SPEC)
    assert entries(cache) == []


def test_an_image_that_fails_midway_leaves_nothing_in_the_cache(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(data: bytes, size: int, channels: int) -> np.ndarray:
        calls.append(data)
        if len(calls) > 20:
            raise MemoryError
        return decode_image(data, size, channels)

    monkeypatch.setattr(datasets, "decode_image", failing)
    with pytest.raises(MemoryError):
        cache.pixels(windows[0], "train", SPEC)
    assert entries(cache) == []
    monkeypatch.undo()
    assert len(cache.pixels(windows[0], "train", SPEC)[1]) > 20


KILLED = """
import os, sys, time
from pathlib import Path
from components.core import datasets
from components.core.config import StoreConfig
from components.core.datasets import PixelCache
from components.core.models import ModelSpec
from components.core.storage import DirectoryStore
from components.core.windows import Window

store, identity, cache = sys.argv[1:]
decode, calls = datasets.decode_image, []

def stuck(data, size, channels):
    calls.append(data)
    if len(calls) > 8:
        os.write(1, b"stuck\\n")  # one call: several threads come here at once
        time.sleep(600)
    return decode(data, size, channels)

datasets.decode_image, datasets.DECODE_BATCH = stuck, 4
spec = ModelSpec(
    architecture="small-cnn", classes=("cat", "dog"), image_size=4, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3
)
window = Window.open(DirectoryStore(Path(store)), "images", identity)
PixelCache(StoreConfig(uri="unused", cache=cache)).pixels(window, "train", spec)
"""


def test_a_file_that_was_being_written_when_the_process_was_killed_is_never_seen(
    windows: list[Window], cache: PixelCache, tmp_path: Path
) -> None:
    window = windows[0]
    arguments = [str(tmp_path / "store"), window.document.id, str(cache.folder.parent)]
    child = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stuck\n"
        child.send_signal(signal.SIGKILL)
    assert [Path(name).suffix for name in entries(cache)] == [".part"]
    array, digests = cache.pixels(window, "train", SPEC)
    files = originals([window])
    for plane, digest in zip(array, digests, strict=True):
        assert plane.numpy().tolist() == decode_image(files[digest], 4, 3).tolist()


def test_what_killed_processes_left_does_not_stay_for_ever(windows: list[Window], cache: PixelCache) -> None:
    cache.folder.mkdir(parents=True)
    abandoned = cache.folder / "tmpabcdefgh.part"
    abandoned.write_bytes(bytes(10_000))
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(abandoned, (month_ago, month_ago))
    cache.pixels(windows[0], "train", SPEC)
    assert not abandoned.exists()


def test_two_who_decode_the_same_at_once_both_get_it(windows: list[Window], cache: PixelCache) -> None:
    found: list[Tensor] = []
    barrier = threading.Barrier(3)

    def read() -> None:
        barrier.wait()
        found.append(cache.pixels(Window(windows[0].store, windows[0].document), "train", SPEC)[0])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(array, found[0]) for array in found)
    assert len(entries(cache)) == 1


def test_an_entry_that_another_process_removes_while_it_is_opened_is_made_again(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.pixels(windows[0], "train", SPEC)[0].clone()
    exists = Path.exists

    def removed_behind_us(path: Path, **keys: bool) -> bool:
        there = exists(path, **keys)
        if path.suffix == ".npy":
            path.unlink(missing_ok=True)
        return there

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", removed_behind_us)
        with suppress(OSError, EOFError):  # to fail this once would do
            cache.pixels(windows[0], "train", SPEC)
    assert torch.equal(cache.pixels(windows[0], "train", SPEC)[0], before), "and nobody after us finds an empty file"


# --- some images only


class WatchedStore(DirectoryStore):
    """Remembers what was read of it: keys with offset and length."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int, int | None]] = []

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.reads.append((key, offset, length))
        return super().get(key, offset=offset, length=length)

    @property
    def image_reads(self) -> list[tuple[str, int, int | None]]:
        return sorted(read for read in self.reads if "manifest" not in read[0])


def watched(window: Window) -> tuple[Window, WatchedStore]:
    """The same window, opened anew in a store that remembers."""
    store = WatchedStore(Path(window.store.uri))
    return Window(store, window.document), store


def load_only(
    cache: PixelCache, windows: list[Window], only: Collection[str], split: Split | None = "train"
) -> ImageSet:
    return load_images(windows, split, SPEC, SPEC.classes, cache, only=only)


def some(window: Window, split: Split = "train", every: int = 3) -> list[str]:
    digests: list[str] = window.rows(split)["sha256"].to_pylist()[::every]
    assert digests, "or the test shows nothing"
    return digests


def decoded_from_now_on(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    decoded: list[bytes] = []

    def counting(data: bytes, size: int, channels: int) -> np.ndarray:
        decoded.append(data)
        return decode_image(data, size, channels)

    monkeypatch.setattr(datasets, "decode_image", counting)
    return decoded


def other_cache(cache: PixelCache) -> PixelCache:
    return PixelCache(StoreConfig(uri="unused", cache=str(cache.folder.parent / "other")))


def same_as_in_the_whole(found: ImageSet, whole: ImageSet, only: Collection[str]) -> None:
    """The wanted rows of the whole, bit for bit, and no others."""
    wanted = whole.subset(torch.tensor([digest in set(only) for digest in named(whole)]))
    assert found.rows.equals(wanted.rows)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(everything(found.images), everything(wanted.images))


@pytest.mark.parametrize("kind", [list, set, tuple])
def test_only_the_wanted_images_are_read_and_decoded(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    window, store = watched(windows[0])
    only, decoded = some(window), decoded_from_now_on(monkeypatch)
    found = load_only(cache, [window], kind(only))
    rows = window.rows("train").filter(pc.is_in(window.rows("train")["sha256"], pa.array(only)))
    folder = f"datasets/images/windows/{window.document.id}"
    places = zip(rows["shard"].to_pylist(), rows["offset"].to_pylist(), rows["bytes"].to_pylist(), strict=True)
    assert store.image_reads == sorted((f"{folder}/{shard}", offset, length) for shard, offset, length in places)
    assert sorted(sha256_hex(data) for data in decoded) == sorted(only)
    assert len(entries(cache)) == 1
    same_as_in_the_whole(found, load(other_cache(cache), [windows[0]], "train"), only)


def test_many_wanted_images_of_a_shard_are_one_read_and_still_no_other_is_decoded(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.core.windows.RANGED_READS", 2)
    window, store = watched(windows[0])
    only, decoded = some(window), decoded_from_now_on(monkeypatch)
    load_only(cache, [window], only)
    assert [(offset, length) for _, offset, length in store.image_reads] == [(0, None)]
    assert sorted(sha256_hex(data) for data in decoded) == sorted(only)


def test_a_choice_is_decoded_once_whatever_its_order(windows: list[Window], cache: PixelCache) -> None:
    only = some(windows[0])
    first = load_only(cache, [windows[0]], only)
    made = entries(cache)
    without_shards(windows[0])
    for again in (only, only[::-1], set(only)):
        same_as_in_the_whole(load_only(cache, [windows[0]], again), first, only)
    assert entries(cache) == made


def test_another_choice_has_an_array_of_its_own(windows: list[Window], cache: PixelCache) -> None:
    whole = load(other_cache(cache), windows, "train")
    for number, every in enumerate((2, 3, 4), start=1):
        only = some(windows[0], every=every)
        same_as_in_the_whole(load_only(cache, [windows[0]], only), whole, only)
        assert len(entries(cache)) == number


def test_a_side_that_is_there_already_is_used(windows: list[Window], cache: PixelCache) -> None:
    whole = load(cache, [windows[0]], "train")
    made, only = entries(cache), some(windows[0])
    same_as_in_the_whole(load_only(cache, [without_shards(windows[0])], only), whole, only)
    assert entries(cache) == made


def test_a_side_that_is_gone_is_not_made_again_for_some_images(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(cache, [windows[0]], "train")
    for path in cache.folder.iterdir():
        path.unlink()
    only, decoded = some(windows[0]), decoded_from_now_on(monkeypatch)
    same_as_in_the_whole(load_only(cache, [windows[0]], only), whole, only)
    assert len(decoded) == len(only)


def test_wanting_every_image_of_a_side_is_wanting_the_side(windows: list[Window], cache: PixelCache) -> None:
    found = load_only(cache, [windows[0]], some(windows[0], every=1))
    made = entries(cache)
    assert named(load(cache, [without_shards(windows[0])], "train")) == named(found)
    assert entries(cache) == made


def test_some_images_of_both_sides(windows: list[Window], cache: PixelCache) -> None:
    only = some(windows[0], "train") + some(windows[1], "holdout", every=1)
    same_as_in_the_whole(load_only(cache, windows, only, None), load(other_cache(cache), windows, None), only)


def test_a_wanted_image_in_two_windows_is_taken_from_the_first(windows: list[Window], cache: PixelCache) -> None:
    first, second = (set(some(window, every=1)) for window in windows)
    assert (shared := first & second), "or this test shows nothing"
    assert sorted(named(load_only(cache, windows, shared))) == sorted(shared)
    assert [name[:32] for name in entries(cache)] == [windows[0].document.id]


@pytest.mark.parametrize("only", [[], set(), ["f" * 64]], ids=str)
def test_wanting_what_is_not_there_decodes_nothing(
    windows: list[Window], cache: PixelCache, only: Collection[str]
) -> None:
    found = load_only(cache, windows, only)
    assert (len(found), everything(found.images).shape) == (0, (0, 3, 4, 4))
    assert not cache.folder.exists()


def test_some_images_need_no_more_room_than_they_take(windows: list[Window], cache: PixelCache) -> None:
    only = some(windows[0])
    size = len(only) * 3 * 4 * 4
    assert size < bytes_of(windows[0], "train"), "or the test shows nothing"
    with pytest.raises(ConfigurationError, match=r"store\.cache_bytes"):
        load_only(limited(cache, size - 1), [windows[0]], only)
    assert entries(cache) == []
    assert len(load_only(limited(cache, size), [windows[0]], only)) == len(only)


def test_some_images_go_like_all_others_when_the_cache_is_full(windows: list[Window], cache: PixelCache) -> None:
    load_only(cache, [windows[0]], some(windows[0]))
    limited(cache, bytes_of(windows[1], "train") + 100).pixels(windows[1], "train", SPEC)
    assert [name[:32] for name in entries(cache)] == [windows[1].document.id]


def test_some_images_that_fail_midway_leave_nothing_in_the_cache(
    windows: list[Window], cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(data: bytes, size: int, channels: int) -> np.ndarray:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "decode_image", failing)
        with pytest.raises(MemoryError):
            load_only(cache, [windows[0]], some(windows[0]))
    assert entries(cache) == []
    assert len(load_only(cache, [windows[0]], some(windows[0]))) == len(some(windows[0]))
