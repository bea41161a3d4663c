"""Decoded images: sizes, modes, labels, and that an image that stands in two windows is taken once, on one side."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.core.config import Config, IngestConfig, StoreConfig
from components.core.datasets import decode_image, load_images
from components.core.models import ModelSpec
from components.core.storage import DirectoryStore
from components.core.windows import Window
from components.ingest.step import ingest

CONFIG = Config(store=StoreConfig(uri="unused"))
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
    assert (plane.shape, plane.dtype) == ((channels, 4, 4), torch.uint8)


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
    assert float(plane.float().mean()) == pytest.approx(127.5, abs=3)


def deliver(folder: Path, seeds: dict[str, range]) -> str:
    for label, numbers in seeds.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for seed in numbers:
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{seed}.png")
    return str(folder)


@pytest.fixture
def windows(tmp_path: Path) -> list[Window]:
    """Two windows that share five cats; the second brings owls."""
    store = DirectoryStore(tmp_path / "store")
    first = ingest(store, CONFIG, deliver(tmp_path / "1", {"cat": range(20), "dog": range(100, 120)}))
    second = ingest(store, CONFIG, deliver(tmp_path / "2", {"cat": range(15, 25), "owl": range(200, 210)}))
    return [Window.open(store, "images", document.id) for document in (first, second)]


def test_an_image_in_two_windows_is_taken_once(windows: list[Window]) -> None:
    images = load_images(windows, None, SPEC, SPEC.classes)
    assert len(images) == 40 + 20 - 5
    assert len({row.sha256 for row in images.rows}) == 55
    assert images.images.shape == (55, 3, 4, 4)


def test_labels_index_the_classes_and_unknown_ones_are_minus_one(windows: list[Window]) -> None:
    images = load_images(windows, None, SPEC, SPEC.classes)
    wanted = {"cat": 0, "dog": 1, "owl": -1}
    assert images.labels.tolist() == [wanted[row.label] for row in images.rows]
    assert int((images.labels == -1).sum()) == 10


def test_images_stand_beside_their_rows(windows: list[Window]) -> None:
    images = load_images(windows, None, SPEC, SPEC.classes)
    originals = {row.sha256: data for window in windows for row, data in window.images(window.rows())}
    for plane, row in zip(images.images, images.rows, strict=True):
        assert torch.equal(plane, decode_image(originals[row.sha256], 4, 3))


def test_the_two_sides_of_the_split_share_no_image(windows: list[Window]) -> None:
    train, holdout = (load_images(windows, split, SPEC, SPEC.classes) for split in ("train", "holdout"))  # type: ignore[arg-type]
    assert len(train) + len(holdout) == 55
    assert {r.sha256 for r in train.rows}.isdisjoint(r.sha256 for r in holdout.rows)


def test_no_window_is_an_empty_set_of_the_right_shape() -> None:
    images = load_images([], "train", SPEC, SPEC.classes)
    assert (len(images), images.images.shape, images.images.dtype) == (0, (0, 3, 4, 4), torch.uint8)
    assert images.labels.dtype == torch.int64


@pytest.mark.parametrize("as_mask", [True, False])
def test_a_subset_keeps_rows_labels_and_images_together(windows: list[Window], as_mask: bool) -> None:
    images = load_images(windows, None, SPEC, SPEC.classes)
    mask = images.labels == 1
    dogs = images.subset(mask if as_mask else mask.nonzero().flatten())
    assert {row.label for row in dogs.rows} == {"dog"}
    assert len(dogs) == 20
    assert dogs.labels.tolist() == [1] * 20
    first = next(i for i, row in enumerate(images.rows) if row.label == "dog")
    assert torch.equal(dogs.images[0], images.images[first])


def sides(window: Window) -> dict[str, str]:
    return {row.sha256: row.split for row in window.rows()}


def test_what_an_earlier_window_holds_is_left_out(windows: list[Window]) -> None:
    first, second = windows
    images = load_images([second], None, SPEC, SPEC.classes, earlier=[first])
    assert len(images) == 20 - 5
    assert {row.sha256 for row in images.rows}.isdisjoint(sides(first))
    assert len(load_images([second], None, SPEC, SPEC.classes)) == 20


def test_nothing_of_an_earlier_window_is_decoded_even_where_all_came_again(windows: list[Window]) -> None:
    images = load_images([windows[0]], "train", SPEC, SPEC.classes, earlier=[windows[0]])
    assert (len(images), images.images.shape) == (0, (0, 3, 4, 4))


def test_an_image_held_out_once_is_not_trained_on_when_it_comes_in_a_group(tmp_path: Path) -> None:
    """The side goes by the group where there is one: the same bytes, with and without, can be on both sides."""
    store = DirectoryStore(tmp_path / "store")
    half = CONFIG.model_copy(update={"ingest": IngestConfig(holdout_fraction=0.5)})
    grouped = half.model_copy(update={"ingest": IngestConfig(holdout_fraction=0.5, group_pattern=r"/(\d)\d*\.")})
    folder = deliver(tmp_path / "1", {"cat": range(40)})
    first, second = (Window.open(store, "images", ingest(store, c, folder).id) for c in (half, grouped))
    before, after = sides(first), sides(second)
    moved = [sha for sha in before if (before[sha], after[sha]) == ("holdout", "train")]
    assert moved, "or this test shows nothing"
    assert len(load_images([second], "train", SPEC, SPEC.classes, earlier=[first])) == 0
    train = load_images([first, second], "train", SPEC, SPEC.classes)
    holdout = load_images([first, second], "holdout", SPEC, SPEC.classes)
    assert {row.sha256 for row in train.rows} == {sha for sha, side in before.items() if side == "train"}
    assert {row.sha256 for row in holdout.rows} == {sha for sha, side in before.items() if side == "holdout"}


def test_a_smaller_holdout_does_not_turn_held_out_images_into_training_images(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    windows = []
    for number, (fraction, seeds) in enumerate(((0.5, range(40)), (0.1, range(20, 60)))):
        config = CONFIG.model_copy(update={"ingest": IngestConfig(holdout_fraction=fraction)})
        folder = deliver(tmp_path / str(number), {"cat": seeds})
        windows.append(Window.open(store, "images", ingest(store, config, folder).id))
    first, second = windows
    held_out = {sha for sha, side in sides(first).items() if side == "holdout"}
    assert held_out & {sha for sha, side in sides(second).items() if side == "train"}, "or this test shows nothing"
    new = load_images([second], "train", SPEC, SPEC.classes, earlier=[first])
    everything = load_images([first, second], "train", SPEC, SPEC.classes)
    for images in (new, everything):
        assert held_out.isdisjoint(row.sha256 for row in images.rows)
    arrived = {sha for sha, side in sides(second).items() if side == "train"}
    assert {row.sha256 for row in new.rows} == arrived - set(sides(first))


def test_more_images_than_are_decoded_at_once_stay_in_order(
    windows: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = load_images(windows, None, SPEC, SPEC.classes)
    monkeypatch.setattr("components.core.datasets.DECODE_BATCH", 7)
    by_sevens = load_images(windows, None, SPEC, SPEC.classes)
    assert by_sevens.rows == together.rows
    assert torch.equal(by_sevens.images, together.images)
    assert torch.equal(by_sevens.labels, together.labels)
