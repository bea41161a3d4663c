"""Ingest: a folder becomes a window, the same folder the same window, and what is set aside."""

import threading
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.core.config import Config, IngestConfig, StoreConfig
from components.core.contracts import Failure, WindowDocument
from components.core.errors import ConfigurationError, SourceError
from components.core.runs import Run
from components.core.storage import DirectoryStore
from components.core.windows import ImageRow, Window
from components.ingest import step
from components.ingest.inspection import inspect_image
from components.ingest.step import ingest, mark_duplicates

CONFIG = Config(store=StoreConfig(uri="unused"))


def paint(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """Thirty images of two classes, one of them twice, one under both labels, one truncated and one empty."""
    folder = tmp_path / "delivery"
    for seed in range(30):
        paint(folder / ("cat" if seed % 2 else "dog") / f"{seed:02d}.png", seed)
    paint(folder / "cat" / "01-copy.png", 1)
    paint(folder / "dog" / "03-is-a-cat.png", 3)
    (folder / "cat" / "cut.png").write_bytes((folder / "cat" / "05.png").read_bytes()[:200])
    (folder / "dog" / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def files(store: DirectoryStore) -> dict[str, bytes]:
    return {listed.key: store.get(listed.key) for listed in store.list_objects()}


def test_what_is_set_aside_and_why(delivery: Path, store: DirectoryStore) -> None:
    document = ingest(store, CONFIG, str(delivery))
    assert document.status_counts == {"conflicting": 2, "duplicate": 1, "ok": 29, "unreadable": 2}
    assert document.class_counts == {"cat": 14, "dog": 15}
    aside = {row.source: row for row in Window.open(store, "images", document.id).manifest() if row.status != "ok"}
    assert {source: row.status for source, row in aside.items()} == {
        "cat/01.png": "duplicate",
        "cat/03.png": "conflicting",
        "dog/03-is-a-cat.png": "conflicting",
        "cat/cut.png": "unreadable",
        "dog/empty.png": "unreadable",
    }
    assert {row.split for row in aside.values()} == {"none"}


def test_packed_images_are_the_delivered_bytes(delivery: Path, store: DirectoryStore) -> None:
    window = Window.open(store, "images", ingest(store, CONFIG, str(delivery)).id)
    pairs = list(window.images(window.rows()))
    assert len(pairs) == 29
    assert all((delivery / row.source).read_bytes() == data for row, data in pairs)
    assert all((row.width, row.height, row.channels, row.format) == (12, 12, 3, "PNG") for row, _ in pairs)


def test_the_same_folder_twice_is_one_window(delivery: Path, store: DirectoryStore) -> None:
    first = ingest(store, CONFIG, str(delivery))
    before = files(store)
    assert ingest(store, CONFIG, str(delivery)) == first
    assert files(store) == before


def test_two_stores_get_identical_bytes(delivery: Path, tmp_path: Path) -> None:
    stores = [DirectoryStore(tmp_path / name) for name in ("one", "two")]
    documents = [ingest(store, CONFIG, str(delivery)) for store in stores]
    assert documents[0].id == documents[1].id
    one, two = (
        {key: data for key, data in files(store).items() if not key.endswith("window.json")} for store in stores
    )
    assert one == two


def test_the_same_images_in_another_folder_are_the_same_window(delivery: Path, store: DirectoryStore) -> None:
    first = ingest(store, CONFIG, str(delivery))
    elsewhere = delivery.rename(delivery.with_name("renamed"))
    assert ingest(store, CONFIG, str(elsewhere)).id == first.id


def test_another_image_makes_another_window(delivery: Path, store: DirectoryStore) -> None:
    first = ingest(store, CONFIG, str(delivery))
    paint(delivery / "cat" / "new.png", 999)
    assert ingest(store, CONFIG, str(delivery)).id != first.id


def test_a_window_can_be_named_by_its_id(delivery: Path, store: DirectoryStore) -> None:
    document = ingest(store, CONFIG, str(delivery))
    assert ingest(store, CONFIG, document.id) == document


def test_an_id_that_no_window_has_is_a_configuration_error(store: DirectoryStore) -> None:
    with pytest.raises(ConfigurationError, match="0" * 32):
        ingest(store, CONFIG, "0" * 32)


def test_a_wrong_folder_leaves_the_store_empty(tmp_path: Path, store: DirectoryStore) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        ingest(store, CONFIG, str(tmp_path / "empty"))
    assert files(store) == {}


@pytest.fixture
def config_path(tmp_path: Path, store: DirectoryStore) -> str:
    path = tmp_path / "retrain.yaml"
    path.write_text("store: {uri: store}\nmodel: m\n")
    return str(path)


def test_a_wrong_strategy_is_filed_with_the_run_that_asked_for_it(
    delivery: Path, store: DirectoryStore, config_path: str
) -> None:
    with pytest.raises(ConfigurationError, match="fine-tone"):
        step.run(config_path, "run-1", str(delivery), "fine-tone")
    run = Run(store, "run-1")
    assert (run.parameters.strategy, run.parameters.source, run.parameters.model) == ("fine-tone", str(delivery), "m")
    assert run.config.model == "m"
    failure = run.need("failure-ingest", Failure)
    assert (failure.step, failure.error, failure.exit_code) == ("ingest", "ConfigurationError", 2)
    assert "fine-tone" in failure.message
    assert run.read("ingest", WindowDocument) is None
    assert not list(store.list_objects("datasets/")), "nothing was packed"
    assert run.failures() == [failure]


def test_a_wrong_source_is_filed_with_the_run_that_asked_for_it(
    tmp_path: Path, store: DirectoryStore, config_path: str
) -> None:
    with pytest.raises(SourceError):
        step.run(config_path, "run-1", str(tmp_path / "nowhere"), "auto")
    assert Run(store, "run-1").parameters.source == str(tmp_path / "nowhere")
    assert Run(store, "run-1").need("failure-ingest", Failure).error == "SourceError"


def test_a_run_begins_with_its_window(delivery: Path, store: DirectoryStore, config_path: str) -> None:
    document = step.run(config_path, "run-1", str(delivery), "fine-tune")
    run = Run(store, "run-1")
    assert run.need("ingest", WindowDocument) == document
    assert run.parameters.strategy == "fine-tune"
    assert run.failures() == []


def test_groups_are_not_split(delivery: Path, store: DirectoryStore) -> None:
    config = CONFIG.model_copy(update={"ingest": IngestConfig(group_pattern=r"/(\d)\d", holdout_fraction=0.5)})
    rows = Window.open(store, "images", ingest(store, config, str(delivery)).id).rows()
    assert {row.group for row in rows} == {"0", "1", "2"}
    assert len({(row.group, row.split) for row in rows}) == 3


def test_pixel_limit_comes_from_the_configuration(delivery: Path, store: DirectoryStore) -> None:
    config = CONFIG.model_copy(update={"ingest": IngestConfig(max_pixels=143)})  # one below 12 x 12
    assert ingest(store, config, str(delivery)).usable == 0


def test_reading_images_on_many_threads_leaves_warnings_on(delivery: Path) -> None:
    # `warnings.catch_warnings` swaps a list that all threads share: one that leaves late can put the wrong one back.
    data = (delivery / "cat" / "01.png").read_bytes()
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [inspect_image(data, 10**6) for _ in range(150)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def row(name: str, sha: str, label: str, status: str = "ok") -> ImageRow:
    return ImageRow(
        sha256=sha * 64,
        label=label,
        group=None,
        status=status,  # type: ignore[arg-type]
        split="none" if status != "ok" else "train",
        width=1,
        height=1,
        channels=1,
        format="PNG",
        bytes=1,
        mean=0.0,
        std=0.0,
        sharpness=0.0,
        source=name,
    )


def statuses(rows: list[ImageRow]) -> dict[str, str]:
    return {marked.source: marked.status for marked in mark_duplicates(rows)}


def test_the_first_of_equal_images_by_name_is_kept() -> None:
    rows = [row("c", "1", "cat"), row("a", "1", "cat"), row("b", "1", "cat"), row("d", "2", "cat")]
    assert statuses(rows) == {"a": "ok", "b": "duplicate", "c": "duplicate", "d": "ok"}


def test_an_image_under_two_labels_is_not_kept_at_all() -> None:
    rows = [row("a", "1", "cat"), row("b", "1", "cat"), row("c", "1", "dog"), row("d", "2", "dog")]
    assert statuses(rows) == {"a": "conflicting", "b": "conflicting", "c": "conflicting", "d": "ok"}


def test_unreadable_files_are_neither_duplicates_nor_conflicts() -> None:
    rows = [row("a", "1", "cat", "unreadable"), row("b", "1", "dog", "unreadable"), row("c", "2", "dog")]
    assert statuses(rows) == {"a": "unreadable", "b": "unreadable", "c": "ok"}


def test_marked_rows_are_on_no_side_and_keep_everything_else() -> None:
    original = [row("a", "1", "cat"), row("b", "1", "cat"), row("c", "2", "cat"), row("d", "2", "dog")]
    for before, after in zip(original, mark_duplicates(original), strict=True):
        assert after.split == ("train" if after.status == "ok" else "none")
        assert replace(after, status=before.status, split=before.split) == before


def test_marking_does_not_depend_on_the_order() -> None:
    rows = [row("a", "1", "cat"), row("b", "1", "cat"), row("c", "2", "cat"), row("d", "2", "dog")]
    assert statuses(rows) == statuses(rows[::-1])
    assert Counter(statuses(rows).values()) == {"ok": 1, "duplicate": 1, "conflicting": 2}
