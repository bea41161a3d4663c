"""What a champion sees of a window: computed once, kept in the store, and in the order asked for."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from components.core.config import Config, IngestConfig, StoreConfig
from components.core.errors import IntegrityError
from components.core.models import Classifier, Features, build_classifier, extract_features, save_classifier
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.core.windows import SCHEMA, Window
from components.detect_drift import features
from components.detect_drift.features import Seen, see_window
from components.ingest.step import ingest
from tests.unit.conftest import number_of
from tests.unit.test_reference import CLASSES, FEATURES, SPEC, as_kept, champion, pictures, same_features, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {1: 40, 2: 30}  # of each window; the number of a window is the seed of its pictures


def deliver(folder: Path, images: Tensor, labels: Tensor) -> str:
    """Write images as a folder a class; their names are their numbers."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / CLASSES[label] / f"{number:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two windows, made once."""
    place = tmp_path_factory.mktemp("features")
    for number, rows in ROWS.items():
        source = deliver(place / str(number), *pictures(rows, number))
        ingest(DirectoryStore(place / "store"), configured(place), source)
    return place / "store"


class House:
    """A store with two windows and a champion, for a test to change."""

    def __init__(self, place: Path) -> None:
        self.store, self.config = DirectoryStore(place / "store"), configured(place)
        self.registry = Registry(self.store, "classifier")
        self.version = self.registry.save_version(save_classifier(champion()))
        folder = self.store.root / "datasets" / "images" / "windows"
        found = [Window.open(self.store, "images", path.name) for path in folder.iterdir()]
        self.windows = {number: window for window in found for number in ROWS if window.document.rows == ROWS[number]}

    def rows(self, number: int = 1) -> pa.Table:
        return self.windows[number].rows(columns=SCHEMA.names)

    def see(self, number: int = 1, rows: pa.Table | None = None, version: str | None = None) -> Seen:
        window = Window(self.store, self.windows[number].document)
        asked = self.rows(number) if rows is None else rows
        return see_window(self.registry, version or self.version, CLASSES, window, asked, self.config)

    def kept(self) -> list[Path]:
        return sorted((self.store.root / "models" / "classifier" / "features").rglob("*.safetensors"))

    def remove_images(self) -> None:
        """Whoever reads an image now fails."""
        for window in self.windows.values():
            for name in window.document.files:
                if name != window.document.manifest:
                    self.store.delete(f"datasets/images/windows/{window.document.id}/{name}")
        shutil.rmtree(self.config.store.cache_folder / "pixels", ignore_errors=True)


def configured(place: Path) -> Config:
    store = StoreConfig(uri=str(place / "store"), cache=str(place / "cache"))
    return Config(store=store, ingest=IngestConfig(workers=1, holdout_fraction=0.4))


@pytest.fixture
def house(stored: Path, tmp_path: Path) -> House:
    shutil.copytree(stored, tmp_path / "store")
    return House(tmp_path)


def numbers(rows: pa.Table) -> list[int]:
    return [number_of(source) for source in rows["source"].to_pylist()]


def as_seen_by(model: Classifier, rows: pa.Table, number: int = 1) -> Features:
    """What a champion sees of the pictures that were delivered, without store, window or cache."""
    images, _ = pictures(ROWS[number], number)
    return as_kept(extract_features(model, [images[numbers(rows)]]))


def same_seen(found: Seen, wanted: Seen) -> None:
    same_features(found.features, wanted.features)
    assert torch.equal(found.labels, wanted.labels)
    assert found.rows.equals(wanted.rows)


# --- rows


def test_every_row_is_the_image_it_names(house: House) -> None:
    seen = house.see()
    assert len(seen.labels) == ROWS[1]
    assert set(seen.rows["split"].to_pylist()) == {"train", "holdout"}
    wanted = as_seen_by(champion(), seen.rows)
    for name in FEATURES:
        assert torch.allclose(getattr(seen.features, name), getattr(wanted, name), atol=1e-3, rtol=1e-3), name
    assert torch.equal(seen.labels, pictures(ROWS[1], 1)[1][numbers(seen.rows)])


@pytest.mark.parametrize(
    "places",
    [list(range(ROWS[1]))[::-1], [7], [30, 2, 17, 3], [5, 5, 1], []],
    ids=["reversed", "one", "some", "twice", "none"],
)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
def test_rows_come_in_the_order_asked(house: House, places: list[int], kept: bool) -> None:
    if kept:
        house.see()
    asked = house.rows().take(pa.array(places, pa.int64()))
    found, everything = house.see(rows=asked), house.see()
    index = torch.tensor(places, dtype=torch.int64)
    same_features(found.features, everything.features.subset(index))
    assert torch.equal(found.labels, everything.labels[index])
    assert found.rows.equals(asked)


def test_asking_for_some_rows_first_keeps_all_of_them(house: House) -> None:
    house.see(rows=house.rows().slice(3, 4))
    house.remove_images()
    assert len(house.see().features.embeddings) == ROWS[1]


def test_labels_that_the_champion_does_not_know_are_minus_one(house: House) -> None:
    rows = house.rows()
    names: list[str | None] = ["owl", None, "dog", "cat", ""] + [None] * (len(rows) - 5)
    column = rows.schema.get_field_index("label")
    seen = house.see(rows=rows.set_column(column, "label", pa.array(names, pa.string())))
    assert seen.labels.tolist() == [-1, -1, 1, 0, -1] + [-1] * (len(rows) - 5)
    assert seen.labels.dtype == torch.int64


def test_labels_are_those_of_the_rows_and_not_kept(house: House) -> None:
    """Labels come later than images: features that are kept must not bring old labels with them."""
    rows = house.rows()
    without = rows.set_column(rows.schema.get_field_index("label"), "label", pa.nulls(len(rows), pa.string()))
    assert set(house.see(rows=without).labels.tolist()) == {-1}
    assert set(house.see().labels.tolist()) == {0, 1}


# --- once


def test_images_are_looked_at_once(house: House) -> None:
    first = house.see()
    house.remove_images()
    same_seen(house.see(), first)


def test_neither_images_nor_champion_are_loaded_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    first = house.see()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr(features, "load_images", refuse)
    monkeypatch.setattr(features, "load_classifier", refuse)
    same_seen(house.see(), first)
    with pytest.raises(AssertionError, match="looked again"):
        house.see(2)


def test_fresh_and_kept_features_are_rounded_alike(house: House) -> None:
    fresh, kept = house.see(), house.see()
    same_seen(kept, fresh)
    embeddings = fresh.features.embeddings
    assert torch.equal(embeddings, embeddings.half().float())
    assert not torch.equal(fresh.features.early, fresh.features.early.half().float()), "only embeddings are rounded"


def test_what_is_kept_does_not_depend_on_who_asked(house: House) -> None:
    house.see(rows=house.rows().slice(0, 2))
    (path,) = house.kept()
    before = path.read_bytes()
    path.unlink()
    house.see()
    assert path.read_bytes() == before


# --- damage


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        flip_last,
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: b"\xff" + data[1:],
        lambda data: data + b"!",
        lambda data: data[: len(data) // 2],
        lambda data: data[:64],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[64:],
    ],
    ids=["last-bit", "digest", "no-text", "longer", "half", "digest-only", "ten-bytes", "empty", "without-digest"],
)
def test_what_was_damaged_is_computed_again_and_replaced(
    house: House, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = house.see()
    (path,) = house.kept()
    written = path.read_bytes()
    path.write_bytes(damage(written))
    with caplog.at_level(logging.WARNING):
        same_seen(house.see(), first)
    assert path.name in caplog.text
    assert "is damaged and is computed again" in caplog.text
    assert path.read_bytes() == written
    house.remove_images()
    same_seen(house.see(), first)


def test_damaged_features_without_images_are_an_error_and_never_used(house: House) -> None:
    house.see()
    (path,) = house.kept()
    path.write_bytes(flip_last(path.read_bytes()))
    house.remove_images()
    with pytest.raises(IntegrityError, match="is missing"):
        house.see()


def test_nothing_is_kept_of_images_that_cannot_be_read(house: House) -> None:
    house.remove_images()
    with pytest.raises(IntegrityError, match="is missing"):
        house.see()
    assert house.kept() == []


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_champion_whose_weights_are_no_numbers_is_an_error_each_time(house: House, broken: float) -> None:
    model = build_classifier(SPEC, seeded(9)).eval()
    with torch.no_grad():
        model.head.bias[0] = broken
    version = house.registry.save_version(save_classifier(model))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"champion {version} gives values that are not finite"):
            house.see(version=version)


# --- whose


def test_each_window_has_its_own(house: House) -> None:
    seen = {number: house.see(number) for number in ROWS}
    folder = house.store.root / "models" / "classifier" / "features" / house.version
    names = {f"{window.document.id}-{features.EXTRACTION}.safetensors" for window in house.windows.values()}
    assert {path.name for path in folder.iterdir()} == names
    house.remove_images()
    for number, rows in ROWS.items():
        assert len(seen[number].labels) == rows
        same_seen(house.see(number), seen[number])


def test_each_champion_has_its_own(house: House) -> None:
    other = build_classifier(SPEC, seeded(9)).eval()
    version = house.registry.save_version(save_classifier(other))
    first, second = house.see(), house.see(version=version)
    assert not torch.allclose(first.features.embeddings, second.features.embeddings, atol=0.1)
    assert [path.parent.name for path in house.kept()] == sorted([house.version, version])
    house.remove_images()
    same_seen(house.see(), first)
    same_seen(house.see(version=version), second)


def test_a_new_extraction_is_not_mixed_with_an_old_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.see()
    monkeypatch.setattr(features, "EXTRACTION", features.EXTRACTION + 1)
    house.see()
    assert len(house.kept()) == 2
