"""Exemplars: kept with a version, and read again from their windows, and nothing beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from components.core.config import StoreConfig
from components.core.datasets import PixelCache, decode_image
from components.core.errors import IntegrityError
from components.core.exemplars import (
    SCHEMA,
    load_exemplars,
    rank_exemplars,
    read_exemplars,
    write_exemplars,
)
from components.core.registry import EXEMPLARS, Registry
from components.core.storage import DirectoryStore
from components.core.windows import Window, to_parquet
from components.ingest.step import ingest
from components.train.replay import choose_reservoir, draw_priorities
from tests.unit.test_datasets import (
    SPEC,
    configured,
    decoded_from_now_on,
    deliver,
    entries,
    everything,
    named,
    originals,
    watched,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def three_windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `windows`, made once."""
    place = tmp_path_factory.mktemp("windows")
    store = DirectoryStore(place / "store")
    seeds = [
        {"cat": range(20), "dog": range(100, 115)},
        {"cat": range(20, 40), "owl": range(200, 215)},
        {"dog": range(115, 135), "owl": range(215, 225)},
    ]
    for number, delivery in enumerate(seeds):
        ingest(store, configured(place), deliver(place / str(number), delivery))
    return store.root


@pytest.fixture
def windows(three_windows: Path, tmp_path: Path) -> list[Window]:
    shutil.copytree(three_windows, tmp_path / "store")
    store = DirectoryStore(tmp_path / "store")
    places = sorted((store.root / "datasets/images/windows").iterdir())
    return [Window.open(store, "images", place.name) for place in places]


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    return PixelCache(StoreConfig(uri="unused", cache=str(tmp_path / "cache")))


def candidates(window: Window) -> pa.Table:
    """All training rows of a window, as they can be chosen from."""
    rows = window.rows("train")
    digests = rows["sha256"].to_pylist()
    columns = {
        "window": [window.document.id] * len(digests),
        "sha256": digests,
        "label": rows["label"].to_pylist(),
        "priority": draw_priorities(digests, 0).numpy(),
    }
    return pa.table(columns)


def choose(rows: pa.Table, count: int) -> pa.Table:
    number_of = {label: n for n, label in enumerate(sorted(set(rows["label"].to_pylist())))}
    labels = torch.tensor([number_of[label] for label in rows["label"].to_pylist()])
    chosen = choose_reservoir(labels, count, torch.tensor(rows["priority"].to_numpy()))
    return rank_exemplars(rows.take(pa.array(chosen.numpy())))


@pytest.fixture
def exemplars(windows: list[Window]) -> pa.Table:
    """Nine, of all three windows' rows."""
    return choose(pa.concat_tables([candidates(window) for window in windows]), 9)


# --- what is kept


def test_ranks_count_those_of_the_same_label_before() -> None:
    chosen = pa.table(
        {
            "label": ["dog", "cat", "cat", "dog", "cat"],
            "sha256": list("abcde"),
            "window": ["w"] * 5,
            "priority": [0.1, 0.2, 0.3, 0.4, 0.5],
            "other": [1] * 5,
        }
    )
    ranked = rank_exemplars(chosen)
    assert ranked.schema.equals(SCHEMA)
    assert ranked["rank"].to_pylist() == [0, 0, 1, 1, 2]
    assert ranked["sha256"].to_pylist() == list("abcde")
    assert ranked["priority"].to_pylist() == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_exemplars_come_back_with_their_version(tmp_path: Path, exemplars: pa.Table) -> None:
    registry = Registry(DirectoryStore(tmp_path / "models"), "m")
    version = registry.save_version({EXEMPLARS: write_exemplars(exemplars)})
    found = read_exemplars(registry, version)
    assert found.schema.equals(SCHEMA)
    assert found.equals(exemplars)
    assert write_exemplars(found) == write_exemplars(exemplars), "the same version for the same rows"


def test_none_is_a_choice_too(tmp_path: Path, exemplars: pa.Table, windows: list[Window], cache: PixelCache) -> None:
    none = rank_exemplars(exemplars.slice(0, 0))
    registry = Registry(DirectoryStore(tmp_path / "models"), "m")
    found = read_exemplars(registry, registry.save_version({EXEMPLARS: write_exemplars(none)}))
    assert (found.num_rows, found.schema) == (0, SCHEMA)
    images = load_exemplars(found, windows, SPEC, SPEC.classes, cache)
    assert (len(images), everything(images.images).shape) == (0, (0, 3, 4, 4))


def test_columns_of_a_later_release_are_passed_over(tmp_path: Path, exemplars: pa.Table) -> None:
    registry = Registry(DirectoryStore(tmp_path / "models"), "m")
    later = exemplars.append_column("mood", pa.array(["good"] * len(exemplars)))
    assert read_exemplars(registry, registry.save_version({EXEMPLARS: to_parquet(later)})).equals(exemplars)


def test_damaged_exemplars_are_not_used(tmp_path: Path, exemplars: pa.Table) -> None:
    registry = Registry(DirectoryStore(tmp_path / "models"), "m")
    version = registry.save_version({EXEMPLARS: write_exemplars(exemplars)})
    path = tmp_path / "models/models/m/versions" / version / EXEMPLARS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=EXEMPLARS):
        read_exemplars(registry, version)


# --- a buffer over many windows


@pytest.mark.parametrize("count", [1, 6, 20, 1000])
def test_a_buffer_kept_from_version_to_version_is_a_choice_among_all_windows(
    windows: list[Window], tmp_path: Path, count: int
) -> None:
    registry = Registry(DirectoryStore(tmp_path / "models"), "m")
    kept = choose(candidates(windows[0]), count)
    for window in windows[1:]:
        kept = read_exemplars(registry, registry.save_version({EXEMPLARS: write_exemplars(kept)}))
        kept = choose(pa.concat_tables([kept.select(candidates(window).column_names), candidates(window)]), count)
    assert kept.equals(choose(pa.concat_tables([candidates(window) for window in windows]), count))


# --- opening them


def test_exemplars_are_opened_in_their_order_with_their_pixels(
    windows: list[Window], exemplars: pa.Table, cache: PixelCache
) -> None:
    files = originals(windows)
    for rows in (exemplars, exemplars.take(pa.array([8, 0, 3])), exemplars.slice(4, 1)):
        images = load_exemplars(rows, windows, SPEC, SPEC.classes, cache)
        assert named(images) == rows["sha256"].to_pylist()
        assert named(images, "label") == rows["label"].to_pylist()
        number_of = {"cat": 0, "dog": 1, "owl": -1}
        assert images.labels.tolist() == [number_of[label] for label in rows["label"].to_pylist()]
        for plane, digest in zip(everything(images.images), named(images), strict=True):
            assert plane.numpy().tolist() == decode_image(files[digest], 4, 3).tolist()


def test_nothing_but_exemplars_is_read_and_decoded(
    windows: list[Window], exemplars: pa.Table, cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = decoded_from_now_on(monkeypatch)
    some = exemplars.filter(pc.is_in(exemplars["window"], pa.array([window.document.id for window in windows[:2]])))
    pairs = [watched(window) for window in windows]
    load_exemplars(some, [window for window, _ in pairs], SPEC, SPEC.classes, cache)
    sizes = {row["sha256"]: row["bytes"] for window in windows for row in window.rows("train").to_pylist()}
    for window, store in pairs:
        here = some.filter(pc.equal(some["window"], window.document.id))["sha256"].to_pylist()
        assert sorted(length or 0 for _, _, length in store.image_reads) == sorted(sizes[digest] for digest in here)
    assert pairs[2][1].reads == [], "not even the manifest of a window without exemplars"
    assert len(decoded) == len(some)
    assert len(entries(cache)) == len(some["window"].unique())


def test_opening_again_reads_no_image(windows: list[Window], exemplars: pa.Table, cache: PixelCache) -> None:
    first = load_exemplars(exemplars, windows, SPEC, SPEC.classes, cache)
    pairs = [watched(window) for window in windows]
    again = load_exemplars(exemplars, [window for window, _ in pairs], SPEC, SPEC.classes, cache)
    assert torch.equal(everything(again.images), everything(first.images))
    assert not [read for _, store in pairs for read in store.image_reads]


def test_rows_have_the_columns_that_were_asked_for(
    windows: list[Window], exemplars: pa.Table, cache: PixelCache
) -> None:
    images = load_exemplars(exemplars, windows, SPEC, SPEC.classes, cache, columns=("source", "mean"))
    assert images.rows.column_names == ["source", "mean"]
    assert len(images) == len(exemplars)


def test_an_exemplar_whose_window_was_not_opened_is_named(
    windows: list[Window], exemplars: pa.Table, cache: PixelCache
) -> None:
    with pytest.raises(IntegrityError, match=windows[1].document.id):
        load_exemplars(exemplars, [windows[0], windows[2]], SPEC, SPEC.classes, cache)


def test_an_exemplar_that_its_window_does_not_hold_is_named(
    windows: list[Window], exemplars: pa.Table, cache: PixelCache
) -> None:
    held_out = windows[0].rows("holdout")["sha256"].to_pylist()[0]
    for stranger in ("f" * 64, held_out):
        rows = exemplars.slice(0, 1)
        rows = rows.set_column(0, "window", pa.array([windows[0].document.id])).set_column(
            1, "sha256", pa.array([stranger])
        )
        with pytest.raises(IntegrityError, match=stranger):
            load_exemplars(rows, windows, SPEC, SPEC.classes, cache)
