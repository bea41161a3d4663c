"""One contract for all object stores: a directory, moto, Swift and versitygw answer every question alike.

Then what only some can show: races, killed writers, and replies that were lost after the server had acted.
Not covered: TLS, and servers that no package registry carries.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from components.core.config import StoreConfig
from components.core.errors import ConditionUnsupported, ConfigurationError, StoreUnreachable
from components.core.storage import DirectoryStore, KeyMissing, ObjectStore, S3Store, open_store, sha256_hex
from tests.servers import PROCESSES, Backend, LossyProxy, free_port, on, race

MIB = 2**20
S3 = ("moto", "swift", "versitygw")


def keys(store: ObjectStore, prefix: str = "", **where: str) -> list[str]:
    return [listed.key for listed in store.list_objects(prefix, **where)]


@pytest.fixture(scope="module")
def nobody() -> ObjectStore:
    """A bucket on a port where nobody listens."""
    config = StoreConfig(uri="s3://retrain-tests/x", endpoint_url=f"http://127.0.0.1:{free_port()}", max_attempts=1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "tester")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setattr(boto3, "DEFAULT_SESSION", None)
        return open_store(config)


# Reading and writing


def test_what_was_put_is_read_back(store: ObjectStore) -> None:
    store.put("a/b.bin", bytes(range(256)))
    assert store.get("a/b.bin") == bytes(range(256))


def test_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    info = store.head("empty")
    assert store.get("empty") == b""
    assert info is not None
    assert info.size == 0


def test_put_replaces_the_whole_object(store: ObjectStore) -> None:
    store.put("k", b"a longer first version")
    store.put("k", b"short")
    assert store.get("k") == b"short"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (3, 4, b"3456"), (7, None, b"789"), (8, 100, b"89"), (9, 1, b"9"), (4, 0, b"")],
)
def test_range_of_an_object(store: ObjectStore, offset: int, length: int | None, expected: bytes) -> None:
    store.put("k", b"0123456789")
    assert store.get("k", offset=offset, length=length) == expected


def test_range_behind_the_end_is_empty(store: ObjectStore) -> None:
    store.put("k", b"0123456789")
    assert store.get("k", offset=10, length=5) == b""


@pytest.mark.parametrize("length", [None, 5, 0])
def test_missing_key_is_named(store: ObjectStore, length: int | None) -> None:
    with pytest.raises(KeyMissing, match="not/there"):
        store.get("not/there", length=length)


def test_folder_of_objects_is_not_an_object(store: ObjectStore) -> None:
    store.put("folder/object", b"1")
    assert store.head("folder") is None
    with pytest.raises(KeyMissing):
        store.get("folder")


def test_key_below_an_object_is_missing(store: ObjectStore) -> None:
    store.put("object", b"1")
    assert store.head("object/below") is None
    with pytest.raises(KeyMissing):
        store.get("object/below")


def test_head_describes_the_object(store: ObjectStore) -> None:
    before = time.time()
    store.put("a/k", b"12345")
    info = store.head("a/k")
    assert info is not None
    assert (info.key, info.size) == ("a/k", 5)
    assert before - 2 < info.modified.timestamp() < time.time() + 2


def test_etag_follows_the_content(store: ObjectStore) -> None:
    etags = []
    for data in (b"one", b"two", b"one"):
        store.put("k", data)
        info = store.head("k")
        assert info is not None
        etags.append(info.etag)
    assert etags[0] != etags[1]
    assert '"' not in "".join(etags)


def test_head_of_a_missing_object_is_none(store: ObjectStore) -> None:
    assert store.head("not/there") is None


def test_deleted_object_is_gone_and_deleting_again_is_no_error(store: ObjectStore) -> None:
    store.put("a/k", b"1")
    store.delete("a/k")
    store.delete("a/k")
    assert store.head("a/k") is None
    assert keys(store) == []


def test_deleting_what_never_was_is_no_error(store: ObjectStore) -> None:
    store.put("object", b"1")
    store.put("folder/object", b"1")
    for key in ("missing", "object/below", "folder"):
        store.delete(key)
    assert keys(store) == ["folder/object", "object"]


def test_uploaded_file_of_several_parts_is_whole(store: ObjectStore, tmp_path: Path) -> None:
    data = random.Random(7).randbytes(32 * MIB + 1)
    file = tmp_path / "large.bin"
    file.write_bytes(data)
    store.upload("large", file)
    info = store.head("large")
    assert info is not None
    assert info.size == len(data)
    assert sha256_hex(store.get("large")) == sha256_hex(data)
    assert store.get("large", offset=32 * MIB - 2, length=3) == data[-3:]
    assert [(listed.key, listed.size) for listed in store.list_objects()] == [("large", len(data))]


@on("swift", "versitygw")  # moto says of every upload that it began in 2010
def test_upload_that_was_cut_off_is_listed_with_its_size_and_can_be_discarded(backend: Backend) -> None:
    store, neighbour = backend.open(), backend.open(uri=f"{backend.config.uri}-neighbour")
    uploads = {}
    for one, key in ((store, "a/large"), (store, "later"), (neighbour, "theirs")):
        uploads[key] = begin_upload(one, key, b"x" * 6 * MIB)
    cut = {write.name: write for write in store.list_unfinished()}
    assert {name: (write.handle, write.size) for name, write in cut.items()} == {
        "a/large": (uploads["a/large"], 6 * MIB),
        "later": (uploads["later"], 6 * MIB),
    }
    assert all(abs((datetime.now(UTC) - write.started).total_seconds()) < 3600 for write in cut.values())
    assert keys(store) == [], "what is there of it is no object"
    for _ in range(2):
        store.discard(cut["a/large"])
    assert [write.name for write in store.list_unfinished()] == ["later"]
    assert [write.name for write in neighbour.list_unfinished()] == ["theirs"]


def begin_upload(store: ObjectStore, key: str, data: bytes) -> str:
    """A multipart upload of which one part has arrived, and its uploader died."""
    assert isinstance(store, S3Store)
    at = {"Bucket": store.bucket, "Key": store.prefix + key}
    upload = str(store._client.create_multipart_upload(**at)["UploadId"])
    store._client.upload_part(**at, UploadId=upload, PartNumber=1, Body=data)
    return upload


def test_writer_that_was_killed_leaves_a_file_that_is_listed_and_can_be_discarded(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    assert list(store.list_unfinished()) == []
    store.put("k", b"data")
    assert list(store.list_unfinished()) == []
    (store.root / ".tmp" / "half").write_bytes(b"half")
    (cut,) = store.list_unfinished()
    assert (cut.name, cut.size) == (".tmp/half", 4)
    for _ in range(2):
        store.discard(cut)
    assert list(store.list_unfinished()) == []
    assert keys(store) == ["k"]


def test_upload_replaces_the_object(store: ObjectStore, tmp_path: Path) -> None:
    store.put("k", b"a longer first version")
    (tmp_path / "file").write_bytes(b"short")
    store.upload("k", tmp_path / "file")
    assert store.get("k") == b"short"


@pytest.mark.parametrize(
    "key",
    [
        "ünïcode/ключ/鍵/😀",
        "plus+sign/a+b",
        "percent%20/50%",
        "with space/ lead and trail ",
        "reserved;?#&=@:,$!*'()",
        'quotes"<>[]{}|^`~',
        "back\\slash",
        "dots/.hidden/..a/a..",
        "x" * 255,
    ],
)
def test_odd_key_is_kept_to_the_letter(store: ObjectStore, key: str) -> None:
    store.put(key, key.encode())
    assert store.get(key) == key.encode()
    assert keys(store) == [key]
    assert store.put_new(key, b"other") is False
    store.delete(key)
    assert store.head(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/x",
        "x/",
        "a//b",
        ".",
        "..",
        "../x",
        "a/../../x",
        "a/./b",
        "a/..",
        ".tmp/x",
        ".lock/x",
        ".x",
        "a/\n",
        "a\x00b",
        "a\x7f",
        "\ud800",
        "a/" + "x" * 256,
        "é" * 128,
    ],
)
def test_bad_key_is_refused_before_anything_is_asked(key: str, tmp_path: Path, nobody: ObjectStore) -> None:
    uses: tuple[Callable[[ObjectStore], object], ...] = (
        lambda store: store.get(key),
        lambda store: store.head(key),
        lambda store: store.put(key, b"1"),
        lambda store: store.put_new(key, b"1"),
        lambda store: store.put_if_match(key, b"1", "0"),
        lambda store: store.upload(key, Path(__file__)),
        lambda store: store.delete(key),
    )
    for store in (DirectoryStore(tmp_path / "store"), nobody):
        for use in uses:
            with pytest.raises(ValueError):  # noqa: PT011  # a surrogate is refused by its encoding, in its own words
                use(store)
    assert list(tmp_path.iterdir()) == []


# Conditions


def test_put_new_creates_once(store: ObjectStore) -> None:
    assert store.put_new("k", b"first") is True
    assert store.put_new("k", b"second") is False
    assert store.get("k") == b"first"


def test_put_new_of_the_same_bytes_is_harmless(store: ObjectStore) -> None:
    assert store.put_new("k", b"first") is True
    assert store.put_new("k", b"first") is True
    assert store.get("k") == b"first"


def test_put_new_after_delete_creates_again(store: ObjectStore) -> None:
    store.put_new("k", b"first")
    store.delete("k")
    assert store.put_new("k", b"second") is True
    assert store.get("k") == b"second"


@on("directory", "moto", "versitygw")
def test_put_if_match_replaces_what_was_seen(store: ObjectStore) -> None:
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    assert store.put_if_match("k", b"next", seen.etag) is True
    assert store.get("k") == b"next"


@on("directory", "moto", "versitygw")
def test_put_if_match_leaves_what_has_changed(store: ObjectStore) -> None:
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    store.put("k", b"changed")
    assert store.put_if_match("k", b"next", seen.etag) is False
    assert store.get("k") == b"changed"


@on("directory", "moto", "versitygw")
def test_put_if_match_of_what_is_there_already_is_harmless(store: ObjectStore) -> None:
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    assert store.put_if_match("k", b"next", seen.etag) is True
    assert store.put_if_match("k", b"next", seen.etag) is True
    assert store.get("k") == b"next"


@on("directory", "moto", "versitygw")
def test_put_if_match_makes_nothing(store: ObjectStore) -> None:
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    assert store.put_if_match("missing", b"next", seen.etag) is False
    assert store.head("missing") is None


@on("swift")
def test_missing_condition_is_said(store: ObjectStore) -> None:
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    with pytest.raises(ConditionUnsupported, match="501"):
        store.put_if_match("k", b"next", seen.etag)
    assert store.get("k") == b"seen"


# Listing


def test_listing_is_in_byte_order(store: ObjectStore) -> None:
    # U+FF5E comes before U+1F600 in bytes, and after it in UTF-16.
    expected = ["B", "a-b", "a.b", "a/b", "a/c/d", "a0", "ab", "z/1", "z/10", "z/2", "é", "～", "😀"]
    for key in random.Random(3).sample(expected, len(expected)):
        store.put(key, key.encode())
    listed = list(store.list_objects())
    assert [entry.key for entry in listed] == expected
    assert [entry.size for entry in listed] == [len(key.encode()) for key in expected]


def test_prefix_is_the_start_of_a_key_not_a_folder(store: ObjectStore) -> None:
    for key in ("other", "runs/1/a", "runs/10/a", "runs/1x", "runs/2/a", "runs2"):
        store.put(key, b"1")
    expected = {
        "runs/1": ["runs/1/a", "runs/10/a", "runs/1x"],
        "runs/1/": ["runs/1/a"],
        "runs": ["runs/1/a", "runs/10/a", "runs/1x", "runs/2/a", "runs2"],
        "runs/1/a": ["runs/1/a"],
        "runs/1/a/": [],
        "nothing/here/": [],
        "runs/3": [],
    }
    assert {prefix: keys(store, prefix) for prefix in expected} == expected


def test_listing_starts_after_a_key(store: ObjectStore) -> None:
    for key in ("a/1", "a/2", "a/3", "b/1"):
        store.put(key, b"1")
    expected = {
        ("", "a/2"): ["a/3", "b/1"],
        ("a/", "a/1"): ["a/2", "a/3"],
        ("a/", "a/25"): ["a/3"],
        ("a/", "0"): ["a/1", "a/2", "a/3"],
        ("a/", "a/3"): [],
        ("", "z"): [],
    }
    assert {where: keys(store, where[0], start_after=where[1]) for where in expected} == expected


def test_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert keys(store) == []
    assert keys(store, "some/prefix/") == []


def test_stores_of_one_bucket_do_not_see_each_other(backend: Backend) -> None:
    store, other = backend.open(), backend.open(uri=backend.config.uri + "2")
    store.put("k", b"1")
    assert keys(other) == []


@on("versitygw")
def test_listing_goes_over_many_pages(store: ObjectStore) -> None:
    expected = [f"many/{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b"1"), expected))
    assert keys(store) == expected
    assert keys(store, "many/", start_after="many/0001") == expected[2:]


def test_objects_that_vanish_during_a_listing_do_not_break_it(store: ObjectStore) -> None:
    for key in ("a/1", "a/2", "b/1", "c"):
        store.put(key, b"1")
    listing = store.list_objects()
    assert next(listing).key == "a/1"
    for key in ("a/2", "b/1"):
        store.delete(key)
    assert [listed.key for listed in listing][-1] == "c"


# Reachable or not


def test_store_that_answers_is_reachable_and_unchanged(store: ObjectStore) -> None:
    store.check_reachable(write=True)
    assert keys(store) == []


def test_check_changes_nothing_in_a_directory(tmp_path: Path) -> None:
    DirectoryStore(tmp_path / "store").check_reachable(write=True)
    assert list(tmp_path.iterdir()) == []


@on(*S3)
def test_missing_bucket_is_unreachable(backend: Backend) -> None:
    with pytest.raises(StoreUnreachable, match="no-such-bucket"):
        backend.open(uri="s3://no-such-bucket/x").check_reachable(write=True)


@on(*S3)
@pytest.mark.parametrize("wrong", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}])
def test_wrong_credentials_are_unreachable(
    backend: Backend, wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.open().put("k", b"1")
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    store = backend.open()
    with pytest.raises(StoreUnreachable, match="credentials"):
        store.check_reachable(write=True)
    uses: list[Callable[[], object]] = [lambda: store.get("k"), lambda: store.put_new("k", b"2")]
    if not (backend.name == "versitygw" and "AWS_ACCESS_KEY_ID" in wrong):  # its HEAD answers 404 to an unknown key id
        uses.append(lambda: store.head("k"))
    for use in uses:
        with pytest.raises(StoreUnreachable):
            use()


@on("moto")
def test_no_credentials_are_unreachable(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(StoreUnreachable, match="credentials"):
        backend.open().check_reachable(write=True)


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.check_reachable(write=True),
        lambda store: store.get("k"),
        lambda store: store.head("k"),
        lambda store: store.put("k", b"1"),
        lambda store: store.put_new("k", b"1"),
        lambda store: store.upload("k", Path(__file__)),
        lambda store: list(store.list_objects()),
        lambda store: store.delete("k"),
    ],
    ids=["check_reachable", "get", "head", "put", "put_new", "upload", "list_objects", "delete"],
)
def test_refused_port_is_unreachable(use: Callable[[ObjectStore], object], nobody: ObjectStore) -> None:
    with pytest.raises(StoreUnreachable, match="s3://retrain-tests/x"):
        use(nobody)


def test_directory_without_a_parent_is_unreachable_and_not_made(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "typing-error" / "store")
    with pytest.raises(StoreUnreachable, match="typing-error"):
        store.check_reachable(write=True)
    with pytest.raises(StoreUnreachable, match="typing-error"):
        store.put("k", b"1")
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_the_directory_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreUnreachable, match="no writable directory"):
        DirectoryStore(tmp_path / "store").check_reachable(write=True)


@pytest.mark.parametrize(
    "config",
    [
        StoreConfig(uri="gs://bucket/prefix"),
        StoreConfig(uri="s3://bucket", endpoint_url="localhost:9000"),
        StoreConfig(uri="s3:///prefix"),
    ],
    ids=["another scheme", "endpoint without http://", "no bucket"],
)
def test_address_that_cannot_be_one_is_a_configuration_error(config: StoreConfig) -> None:
    with pytest.raises(ConfigurationError):
        open_store(config).check_reachable(write=True)


# The directory's own


def test_directory_does_not_list_its_own_files(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("k", b"1")
    seen = store.head("k")
    assert seen is not None
    store.put_if_match("k", b"2", seen.etag)  # makes a lock
    (tmp_path / "store" / ".tmp" / "left-by-a-killed-writer").write_bytes(b"torn")
    assert keys(store) == ["k"]
    for prefix in (".", ".tmp/", ".lock/"):
        assert listed_or_refused(store, prefix) == []


@pytest.mark.parametrize("prefix", ["../", "../secret", "/", "a/../../", "a/../"])
def test_listing_cannot_leave_the_directory(tmp_path: Path, prefix: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("a/k", b"1")
    (tmp_path / "secret").write_bytes(b"1")
    assert listed_or_refused(store, prefix) == []


def listed_or_refused(store: ObjectStore, prefix: str) -> list[str]:
    """What a listing shows; nothing where it is refused, as keys with such a beginning are."""
    try:
        return keys(store, prefix)
    except ValueError:
        return []


def test_directory_leaves_no_temporary_files(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("k", b"1")
    store.put_new("k", b"2")
    store.put_new("n", b"2")
    store.put_if_match("k", b"3", "stale")
    with pytest.raises(FileNotFoundError):
        store.upload("u", tmp_path / "missing")
    assert list((tmp_path / "store" / ".tmp").iterdir()) == []


# Races: the atomic ones only, and each round several times over

WRITERS = 8
ROUNDS = 15


def create_each_round(store: ObjectStore, number: int, meet: Callable[[], object]) -> list[bool]:
    won = []
    for turn in range(ROUNDS):
        meet()
        won.append(store.put_new(f"race/{turn}", f"writer {number}".encode() * 500))
    return won


@on("directory", "versitygw")
def test_one_of_many_creators_wins(backend: Backend) -> None:
    answers = race(backend, create_each_round, WRITERS)
    store = backend.open()
    for turn in range(ROUNDS):
        winners = [number for number in range(WRITERS) if answers[number][turn]]
        assert len(winners) == 1, f"round {turn}: {winners} were told that they won"
        assert store.get(f"race/{turn}") == f"writer {winners[0]}".encode() * 500


def replace_each_round(store: ObjectStore, number: int, meet: Callable[[], object]) -> list[bool]:
    won = []
    for turn in range(ROUNDS):
        seen = store.head(f"race/{turn}")
        assert seen is not None
        meet()
        won.append(store.put_if_match(f"race/{turn}", f"writer {number}".encode() * 500, seen.etag))
    return won


@on("directory", "versitygw")
def test_one_of_many_replacers_wins(backend: Backend) -> None:
    store = backend.open()
    for turn in range(ROUNDS):
        store.put(f"race/{turn}", b"seen by all")
    answers = race(backend, replace_each_round, WRITERS)
    for turn in range(ROUNDS):
        winners = [number for number in range(WRITERS) if answers[number][turn]]
        assert len(winners) == 1, f"round {turn}: {winners} were told that they won"
        assert store.get(f"race/{turn}") == f"writer {winners[0]}".encode() * 500


def count_up(store: ObjectStore, number: int, meet: Callable[[], object]) -> None:
    meet()
    for _ in range(10):
        while True:
            seen = store.head("count")
            assert seen is not None
            value = int(store.get("count").split()[0])  # of `seen` or newer; newer only loses the turn
            if store.put_if_match("count", f"{value + 1} by {number}".encode(), seen.etag):
                break


@on("directory", "versitygw")
def test_no_increment_is_lost(backend: Backend) -> None:
    store = backend.open()
    store.put("count", b"0 by nobody")
    race(backend, count_up, 4)
    assert store.get("count").split()[0] == b"40"


def swap_sizes(root: Path) -> None:
    store = DirectoryStore(root)
    while True:
        store.put("k", b"small")
        store.put("k", b"large" * 1000)


def test_head_tells_size_and_etag_of_the_same_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("k", b"small")
    allowed = {(len(data), sha256_hex(data)) for data in (b"small", b"large" * 1000)}
    writer = PROCESSES.Process(target=swap_sizes, args=(store.root,))
    writer.start()
    try:
        seen, began = set(), time.monotonic()
        while time.monotonic() < began + 1.0 or (seen != allowed and time.monotonic() < began + 30.0):
            info = store.head("k")
            assert info is not None
            seen.add((info.size, info.etag))
    finally:
        writer.kill()
        writer.join()
    assert seen == allowed


# Killed writers


def write_until_killed(root: Path, number: int, acknowledged: Path) -> None:
    """Replace one object and create others for ever; what the store has acknowledged is noted in a file."""
    store = DirectoryStore(root)
    notes = os.open(acknowledged, os.O_WRONLY)
    for turn in range(1, 10**8):
        data = b"%08d" % turn * 20_000
        store.put(f"replaced/{number}", data)
        assert store.put_new(f"created/{number}/{turn:08d}", data)
        os.pwrite(notes, b"%08d" % turn, 0)


def test_killed_writers_leave_whole_objects_and_lose_none(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    waits = random.Random(11)
    total = 0
    for attempt in range(5):
        numbers = range(attempt * 4, attempt * 4 + 4)
        notes = [tmp_path / f"acknowledged-{number}" for number in numbers]
        for note in notes:
            note.write_bytes(b"00000000")
        writers = [
            PROCESSES.Process(target=write_until_killed, args=(store.root, number, note))
            for number, note in zip(numbers, notes, strict=True)
        ]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 20
        while any(note.read_bytes() == b"00000000" for note in notes) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(waits.uniform(0.0, 0.2))
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.join()
        for number, note in zip(numbers, notes, strict=True):
            last = int(note.read_bytes())
            assert last > 0, "the writer did not come to write"
            total += last
            replaced = store.get(f"replaced/{number}")
            assert len(replaced) == 160_000
            assert replaced == replaced[:8] * 20_000
            assert int(replaced[:8]) >= last
            created = list(store.list_objects(f"created/{number}/"))
            assert len(created) in (last, last + 1)
            assert {listed.size for listed in created} == {160_000}
            assert store.get(f"created/{number}/{last:08d}") == b"%08d" % last * 20_000
    assert total > 20


# Lost replies: the server has acted, the client does not know


@on(*S3)
@pytest.mark.parametrize("lost", [1, 2, 3], ids=["one reply", "all of a request", "more than a request"])
def test_creator_whose_reply_is_lost_has_won(backend: Backend, proxy: LossyProxy, lost: int) -> None:
    store = backend.open(endpoint_url=proxy.endpoint)
    proxy.lose("PUT", lost)
    assert store.put_new("k", b"mine") is True
    assert store.get("k") == b"mine"
    assert proxy.lost in (1, 2, lost)


@on(*S3)
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_creator_who_came_second_has_lost_also_without_a_reply(backend: Backend, proxy: LossyProxy, lost: int) -> None:
    backend.open().put("k", b"theirs")
    store = backend.open(endpoint_url=proxy.endpoint)
    proxy.lose("PUT", lost)
    assert store.put_new("k", b"mine") is False
    assert store.get("k") == b"theirs"
    assert proxy.lost > 0


@on("moto", "versitygw")
def test_replacer_whose_reply_is_lost_has_won(backend: Backend, proxy: LossyProxy) -> None:
    store = backend.open(endpoint_url=proxy.endpoint)
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    proxy.lose("PUT", 2)
    assert store.put_if_match("k", b"mine", seen.etag) is True
    assert store.get("k") == b"mine"
    assert proxy.lost == 2


@on("moto", "versitygw")
def test_replacer_who_came_second_has_lost_also_without_a_reply(backend: Backend, proxy: LossyProxy) -> None:
    store = backend.open(endpoint_url=proxy.endpoint)
    store.put("k", b"seen")
    seen = store.head("k")
    assert seen is not None
    store.put("k", b"theirs")
    proxy.lose("PUT", 2)
    assert store.put_if_match("k", b"mine", seen.etag) is False
    assert store.get("k") == b"theirs"
    assert proxy.lost == 2


@on("versitygw")
def test_outcome_is_found_also_when_reading_back_fails_at_first(backend: Backend, proxy: LossyProxy) -> None:
    store = backend.open(endpoint_url=proxy.endpoint)
    for data, won in ((b"mine", True), (b"another's", False)):
        proxy.lose("PUT", 2)
        proxy.lose("HEAD", 2)
        assert store.put_new("k", data) is won
    assert store.get("k") == b"mine"
    assert proxy.lost == 8


@on("versitygw")
def test_outcome_that_cannot_be_found_is_neither_won_nor_lost(backend: Backend, proxy: LossyProxy) -> None:
    store = backend.open(endpoint_url=proxy.endpoint, max_attempts=1)
    proxy.lose("PUT", 1)
    proxy.lose("HEAD", 1)
    with pytest.raises(StoreUnreachable, match="closed"):
        store.put_new("k", b"mine")
    assert store.put_new("k", b"mine") is True


def create_through_losses(store: ObjectStore, number: int, meet: Callable[[], Any]) -> list[bool]:
    won = []
    for turn in range(8):
        meet()
        won.append(store.put_new(f"race/{turn}", f"writer {number}".encode()))
    return won


@on("versitygw")
def test_one_creator_wins_also_when_replies_are_lost(backend: Backend, proxy: LossyProxy) -> None:
    writers = 6
    proxy.lose("PUT", 20)
    config = backend.config.model_copy(update={"endpoint_url": proxy.endpoint})
    lossy = Backend(name=backend.name, config=config, server=backend.server)
    answers = race(lossy, create_through_losses, writers)
    store = backend.open()
    for turn in range(8):
        winners = [number for number in range(writers) if answers[number][turn]]
        assert len(winners) == 1, f"round {turn}: {winners} were told that they won"
        assert store.get(f"race/{turn}") == f"writer {winners[0]}".encode()
    assert proxy.lost == 20
