"""What a look at `trigger.source` shows, on a directory and on S3 servers."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components.core.config import Config, StoreConfig, TriggerConfig
from components.core.errors import ConfigurationError, StoreUnreachable
from components.core.storage import ListedFolder, ListedObject, ObjectStore, S3Store
from components.ingest.deliveries import Deliveries, Upload
from tests import servers
from tests.servers import Backend


@pytest.fixture
def incoming(backend: Backend) -> ObjectStore:
    """Where deliveries arrive: beside the store."""
    if backend.server is None:
        Path(backend.config.uri + "-incoming").mkdir()
    return backend.open(uri=backend.config.uri + "-incoming")


def deliveries(backend: Backend, **policy: Any) -> Deliveries:
    policy = {"source": backend.config.uri + "-incoming", **policy}
    return Deliveries(Config(store=backend.config, trigger=TriggerConfig(**policy)))


def put(store: ObjectStore, *keys: str) -> None:
    for key in keys:
        store.put(key, b"x")


def names(backend: Backend, uploads: list[Upload]) -> list[str]:
    return [upload.uri.removeprefix(f"{backend.config.uri}-incoming/") for upload in uploads]


def test_children_are_what_lies_right_below(store: ObjectStore) -> None:
    put(store, "a/1", "a/b/2", "a-b/1", "c", "d/e/f/g")
    children = list(store.list_children())
    assert {c.key for c in children if isinstance(c, ListedFolder)} == {"a", "a-b", "d"}
    assert [(c.key, c.size) for c in children if isinstance(c, ListedObject)] == [("c", 1)]


def test_nothing_lies_below_an_empty_root(store: ObjectStore) -> None:
    assert list(store.list_children()) == []


def test_delivery_is_complete_with_its_marker(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/cat/1.png", "a/cat/2.png", "b/cat/1.png", "b/_SUCCESS")
    a, b = deliveries(backend).look(())
    assert (a.uri, a.marked, a.images) == (f"{backend.config.uri}-incoming/a", False, 2)
    assert (b.uri, b.marked, b.images) == (f"{backend.config.uri}-incoming/b", True, 1)


def test_fingerprint_changes_whenever_something_comes(backend: Backend, incoming: ObjectStore) -> None:
    looks = deliveries(backend)
    put(incoming, "a/cat/1.png")
    first, again = looks.look(()), looks.look(())
    put(incoming, "a/cat/2.png")
    assert first == again
    assert looks.look(())[0].fingerprint not in ("", first[0].fingerprint)


def test_what_is_taken_is_not_looked_into(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/cat/1.png", "b/cat/1.png")
    assert names(backend, deliveries(backend).look({f"{backend.config.uri}-incoming/a"})) == ["b"]


def test_marker_alone_is_no_delivery(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/_SUCCESS")
    assert [(u.marked, u.fingerprint) for u in deliveries(backend).look(())] == [(False, "")]


def test_another_marker(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/cat/1.png", "a/manifest.json", "b/cat/1.png", "b/_SUCCESS")
    uploads = deliveries(backend, marker="manifest.json").look(())
    assert [(u.marked, u.images) for u in uploads] == [(True, 1), (False, 2)]


def test_tables_and_archives_are_deliveries_of_nobody_knows_how_many(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a.tar", "b.parquet", "c.csv", "readme.txt", "d/part-0.parquet", "d/_SUCCESS")
    uploads = deliveries(backend).look(())
    assert names(backend, uploads) == ["a.tar", "b.parquet", "c.csv", "d"]
    assert [(u.images, u.marked) for u in uploads] == [(None, False)] * 3 + [(None, True)]
    assert all(u.fingerprint for u in uploads)


def test_what_ingest_passes_over_does_not_count(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/cat/1.png", "a/cat/Thumbs.db", "__MACOSX/cat/1.png")
    assert [(u.uri[-2:], u.images) for u in deliveries(backend).look(())] == [("/a", 1)]


def test_where_only_the_marker_counts_nothing_else_is_listed(
    backend: Backend, incoming: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(incoming, "a/cat/1.png", "b/cat/1.png", "b/_SUCCESS")
    looks, listed = deliveries(backend, quiet_minutes=None), list[str]()
    listing = looks._store.list_objects
    monkeypatch.setattr(looks._store, "list_objects", lambda prefix: listed.append(prefix) or listing(prefix))
    assert [u.marked for u in looks.look(())] == [False, True]
    assert [u.marked for u in looks.look(())] == [False, True]
    assert listed == ["b/"], "and what is complete is counted once"


def test_single_look_judges_by_the_clocks(
    backend: Backend, incoming: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(incoming, "a/cat/1.png", "b/cat/1.png", "b/_SUCCESS")
    looks = deliveries(backend, quiet_minutes=30)
    source = f"{backend.config.uri}-incoming"
    assert looks.complete(()) == [f"{source}/b"]

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + timedelta(minutes=31)

    monkeypatch.setattr("components.ingest.deliveries.datetime", Later)
    assert looks.complete(()) == [f"{source}/a", f"{source}/b"]


def test_folder_as_consoles_make_them_is_no_image(backend: Backend) -> None:
    looks = deliveries(backend)
    looks._store.list_children = lambda: iter([ListedFolder(key="may")])  # type: ignore[method-assign]
    placeholder = ListedObject(key="may/", size=0, modified=datetime.now(UTC))
    looks._store.list_objects = lambda prefix: iter([placeholder])  # type: ignore[method-assign]
    looks._check_directory = lambda: None  # type: ignore[method-assign]
    assert [(u.marked, u.fingerprint) for u in looks.look(())] == [(False, "")]


def test_source_that_vanishes_is_not_one_where_nothing_is_new(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    looks = deliveries(
        servers.Backend(name="directory", config=StoreConfig(uri=str(tmp_path / "x"))),
        source=str(tmp_path / "incoming"),
    )
    assert looks.look(()) == []
    (tmp_path / "incoming").rmdir()
    with pytest.raises(ConfigurationError, match="no directory"):
        looks.look(())


def test_folder_that_cannot_be_looked_into_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bad", "good"):
        (tmp_path / "incoming" / name).mkdir(parents=True)
    (tmp_path / "incoming" / "bad" / "loop").symlink_to(".")
    for name in ("0.png", "_SUCCESS"):
        (tmp_path / "incoming" / "good" / name).touch()
    looks = deliveries(
        servers.Backend(name="directory", config=StoreConfig(uri=str(tmp_path / "x"))),
        source=str(tmp_path / "incoming"),
    )
    assert [upload.marked for upload in looks.look(())] == [True]
    assert "bad cannot be looked into" in caplog.text


@pytest.mark.parametrize(("source", "store"), [("in", "in/store"), ("store/in", "store"), ("in", "in")])
def test_store_and_source_lie_apart(tmp_path: Path, source: str, store: str) -> None:
    config = Config(store=StoreConfig(uri=str(tmp_path / store)), trigger=TriggerConfig(source=str(tmp_path / source)))
    with pytest.raises(ConfigurationError, match="one of which holds the other"):
        Deliveries(config)


def test_name_that_no_key_may_have_is_passed_over(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    looks = deliveries(backend)
    bad = ListedFolder(key="a\nb")
    looks._check_directory = lambda: None  # type: ignore[method-assign]
    looks._store.list_children = lambda: iter([bad, bad])  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        assert looks.look(()) == []
    assert "not a key" in caplog.text


def test_source_that_is_not_there(backend: Backend) -> None:
    with pytest.raises(ConfigurationError, match=r"trigger\.source is not set"):
        Deliveries(Config(store=backend.config))
    if backend.server is None:
        with pytest.raises(ConfigurationError, match="no directory"):
            deliveries(backend).check()
        return
    config = Config(store=backend.config, trigger=TriggerConfig(source="s3://no-such-bucket-here/incoming"))
    with pytest.raises(StoreUnreachable):
        Deliveries(config).check()


def test_source_that_is_there(backend: Backend, incoming: ObjectStore) -> None:
    put(incoming, "a/cat/1.png")
    deliveries(backend).check()
    assert isinstance(incoming, S3Store) == (backend.server is not None)
