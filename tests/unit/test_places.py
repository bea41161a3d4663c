"""Places: a folder or a prefix is listed as a stream, read file by file, and never left.

Not covered: real servers (`integration/test_ingest_s3`).
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.core.config import Config, StoreConfig
from components.core.errors import RetrainError, SourceError
from components.core.storage import DirectoryStore, ListedObject
from components.ingest import places
from components.ingest.batches import BATCH_FILES
from components.ingest.places import Bucket, LocalFolder, check_name
from components.ingest.sources import list_batches
from tests.unit.test_ingest import class_folders

IGNORE = Config(store=StoreConfig(uri="unused")).ingest.ignore


def folder_of(root: Path, *names: str, ignore: tuple[str, ...] = IGNORE) -> LocalFolder:
    return LocalFolder(class_folders(root, {name: name.encode() for name in names}), ignore)


def listed(place: places.Place) -> list[str]:
    return [file.name for file in place.list_files()]


def refused(place: places.Place) -> SourceError:
    with pytest.raises(SourceError) as caught:
        listed(place)
    assert caught.value.found.isprintable(), "one line, and text"
    return caught.value


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DirectoryStore]:
    """What lies behind every `s3://` place: a directory."""
    store = DirectoryStore(tmp_path / "bucket")
    monkeypatch.setattr(places, "open_store", lambda config: store)
    places._connect.cache_clear()
    yield store
    places._connect.cache_clear()


BUCKET = Bucket(StoreConfig(uri="s3://bucket/delivery"), IGNORE)

# Names


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "a\nb", "a\0b", "\x1b[31m", "a\\b", "\udcff"],
)
def test_names_that_could_lead_elsewhere_or_cannot_be_printed_are_refused(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        check_name(name, "the delivery")
    assert caught.value.found.isprintable()


@pytest.mark.parametrize("name", ["a", "a/b.c", "...", "a/..b", "猫/Grüße.png", "it's <b> & $(x).png", "-rf", "a b"])
def test_other_names_are_kept(name: str) -> None:
    assert check_name(name, "the delivery") == name


# Folders


def test_files_are_listed_in_order_of_name_with_size_and_stamp(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b/2", "b/10", "a/x/y", "a-b/z")
    files = list(folder.list_files())
    assert [file.name for file in files] == ["a/x/y", "a-b/z", "b/10", "b/2"]
    assert [file.size for file in files] == [5, 5, 4, 3]
    assert len({file.stamp for file in files}) == 4


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a/1")
    first = folder.find("a/1")
    os.utime(tmp_path / "a/1", ns=(1, 1))
    assert first
    assert first.stamp != (folder.find("a/1") or first).stamp


@pytest.mark.parametrize("target", ["nowhere", "..", ".", "link", "/", "/dev/null"])
def test_a_link_that_leads_to_no_file_is_refused(tmp_path: Path, target: str) -> None:
    folder = folder_of(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "link").symlink_to(target)
    assert "cat/link is a link that leads to no file" in refused(folder).found


def test_links_that_lead_to_each_other_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "a").symlink_to("b")
    (tmp_path / "cat" / "b").symlink_to("a")
    assert "link that leads to no file" in refused(folder).found


@pytest.mark.parametrize("name", [b"a\nb", b"\xff", b"\x1b[2J"])
@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_name_that_cannot_be_printed_is_refused_on_one_line(tmp_path: Path, name: bytes, kind: str) -> None:
    folder = folder_of(tmp_path, "cat/1.png")
    path = os.path.join(os.fsencode(tmp_path), b"cat", name)
    try:
        if kind == "file":
            Path(os.fsdecode(path)).write_bytes(b"x")
        else:
            os.symlink(b"nowhere", path)
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    refused(folder)


def test_a_file_that_vanishes_while_its_folder_is_listed_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"cat/{n}" for n in range(9)))
    files = folder.list_files()
    next(files)
    (tmp_path / "cat" / "5").unlink()
    with pytest.raises(SourceError, match="cat/5"):
        list(files)


def test_a_folder_that_vanishes_while_it_is_listed_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "cat/1", "dog/1")
    files = folder.list_files()
    next(files)
    (tmp_path / "dog" / "1").unlink()
    (tmp_path / "dog").rmdir()
    with pytest.raises(SourceError, match="dog"):
        list(files)


@pytest.mark.parametrize(("depth", "name"), [(1500, "a"), (900, "abcdefgh")])  # beyond Python's stack; beyond PATH_MAX
def test_a_folder_of_any_depth_is_listed_or_refused(tmp_path: Path, depth: int, name: str) -> None:
    folder = folder_of(tmp_path / "delivery", "cat/1.png")
    here = os.open(tmp_path / "delivery", os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            there = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = there
    finally:
        os.close(here)
    try:
        assert listed(folder) == ["cat/1.png"]
    except SourceError:
        pass
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "delivery")], check=True)  # pytest cannot


def test_files_and_links_to_files_are_found_and_nothing_else(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a/1", "a/2")
    (tmp_path / "in" / "link").symlink_to(class_folders(tmp_path / "out", {"image": b"x"}) / "image")
    (tmp_path / "in" / "broken").symlink_to("nowhere")
    assert [folder.find(name) is not None for name in ("a/1", "link")] == [True, True]
    for name in ("broken", "a", "b", "a/1/x", "x" * 300, "x/" * 3000 + "y"):
        assert folder.find(name) is None, name


def test_files_are_read_in_order_up_to_a_size(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a/1", "a/22", "a/333")
    assert list(folder.read_many(["a/333", "a/1"], 5)) == [b"a/333", b"a/1"]
    with pytest.raises(SourceError, match="a/333 has more than 4 bytes"):
        list(folder.read_many(["a/1", "a/22", "a/333"], 4))


def test_a_file_that_is_not_there_when_it_is_read_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a/1")
    with pytest.raises(SourceError, match="a/2 cannot be read"):
        list(folder.read_many(["a/1", "a/2"], 9))
    with pytest.raises(SourceError, match="a cannot be read"):
        list(folder.read_many(["a"], 9))


# Prefixes


def test_a_prefix_lists_its_objects_without_folders_and_ignored_names(bucket: DirectoryStore) -> None:
    for name in ("cat/1", "cat/deep/2", "dog/.hidden/3", "dog/Thumbs.db", "__MACOSX/4"):
        bucket.put(name, b"x")
    assert listed(BUCKET) == ["cat/1", "cat/deep/2"]


def keys_only(monkeypatch: pytest.MonkeyPatch, *keys: str, size: int = 1) -> None:
    """A store that lists any keys; it has nothing else."""

    class Listing:
        uri = "s3://bucket/delivery"

        def list_objects(self) -> Iterator[ListedObject]:
            return (ListedObject(key=key, size=size, modified=datetime.now(UTC)) for key in keys)

    monkeypatch.setattr(places, "_connect", lambda config, process: Listing())


def test_the_folders_that_browsers_of_buckets_make_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    keys_only(monkeypatch, "cat/", "dog/deep/", size=0)
    assert listed(BUCKET) == []


@pytest.mark.parametrize("key", ["cat//1", "../1", "cat/\n1", "cat/./1", "/cat/1"])
def test_keys_that_are_no_names_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    keys_only(monkeypatch, key)
    refused(Bucket(BUCKET.config, ignore=()))


@pytest.mark.parametrize("name", [".hidden", "a" * 300, "cat/" + "ü" * 200, "cat\n"])
def test_a_name_that_the_store_would_not_take_is_an_error_of_the_source_or_nothing(
    bucket: DirectoryStore, name: str
) -> None:
    with contextlib.suppress(SourceError):
        assert BUCKET.find(name) is None
    with pytest.raises(SourceError):
        list(BUCKET.read_many([name], 9))
    with pytest.raises(SourceError), BUCKET.open(name) as file:
        file.read()


def test_objects_are_read_in_order_up_to_a_size(bucket: DirectoryStore) -> None:
    names = [f"cat/{n:03d}" for n in range(50)]
    for name in names:
        bucket.put(name, name.encode())
    assert list(BUCKET.read_many(names, 7)) == [name.encode() for name in names]
    with pytest.raises(SourceError, match="has more than 6 bytes"):
        list(BUCKET.read_many(names, 6))
    with pytest.raises(SourceError, match="dog/1 cannot be read"):
        list(BUCKET.read_many([*names, "dog/1"], 9))


def test_an_object_is_read_at_any_position_as_a_file_is(
    bucket: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "READ_AHEAD_BYTES", 64)
    data, dice = random.Random(0).randbytes(1000), random.Random(1)
    bucket.put("cat/1", data)
    with BUCKET.open("cat/1") as file:
        for _ in range(200):
            start, length = dice.randrange(1100), dice.randrange(200)
            assert file.seek(start) == start
            assert file.read(length) == data[start : start + length]
        assert file.seek(-10, os.SEEK_END) == 990
        assert file.read() == data[-10:]


def test_an_object_that_vanishes_while_it_is_read_is_an_error_of_the_source(
    bucket: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "READ_AHEAD_BYTES", 64)
    bucket.put("x.tar", bytes(1000))
    with pytest.raises(SourceError, match=r"x\.tar cannot be read"), BUCKET.open("x.tar") as file:  # noqa: PT012  # reading fails, not opening
        file.read(10)
        bucket.delete("x.tar")
        file.read()
    with pytest.raises(SourceError, match=r"x\.tar cannot be read"), BUCKET.open("x.tar"):
        pass


def test_a_million_keys_pass_through_without_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled, now = 0, datetime.now(UTC)

    class Endless:
        def list_objects(self) -> Iterator[ListedObject]:
            nonlocal pulled
            for pulled in range(1, 1_000_001):
                yield ListedObject(key=f"class-{pulled % 100}/{pulled:07d}.png", size=100, modified=now)

    monkeypatch.setattr(places, "_connect", lambda config, process: Endless())
    batches = list_batches("s3://bucket/delivery", Config(store=StoreConfig(uri="unused")))
    next(batches)
    next(batches)
    assert pulled <= 2 * BATCH_FILES + 2, "a batch is there as soon as its keys are"
    files, most, before = 2 * BATCH_FILES, 0, sys.getallocatedblocks()  # tracemalloc would take a minute
    for batch in batches:
        files += len(batch.files)  # type: ignore[attr-defined]
        most = max(most, sys.getallocatedblocks() - before)
    assert files == pulled == 1_000_000
    assert most < 50 * BATCH_FILES, "objects in memory at a time, of some million that were made"


def test_an_unknown_place_is_refused() -> None:
    for source in ("gs://bucket/x", "http://host/x.tar", "hdfs://x/y.csv"):
        with pytest.raises(RetrainError, match="://"):
            next(list_batches(source, Config(store=StoreConfig(uri="unused"))))
