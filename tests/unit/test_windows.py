"""Windows: their identity, their bytes, what a reader outside this project sees, and that damage is noticed."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from scipy.stats import binom

from components.core.contracts import WindowDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import SCHEMA, ImageRow, Split, Window, select_rows, split_of, window_id, write_window


def content(number: int) -> bytes:
    """Stand-ins for images: windows never look inside. Sizes around a tar block of 512 bytes."""
    return bytes([number % 256]) * (500 + number)


def image_row(number: int, label: str = "cat", status: str = "ok", split: str = "train") -> ImageRow:
    data = content(number)
    return ImageRow(
        sha256=sha256_hex(data),
        label=label,
        group=None,
        status=status,  # type: ignore[arg-type]
        split=split,  # type: ignore[arg-type]
        width=8,
        height=9,
        channels=3,
        format="PNG",
        bytes=len(data),
        mean=0.25,
        std=0.125,
        sharpness=0.5,
        source=f"{label}/{number:03d}.png",
    )


def read(row: ImageRow) -> bytes:
    return content(int(Path(row.source).stem))


def some_rows() -> list[ImageRow]:
    return [
        *(image_row(n, "cat" if n % 2 else "dog", split="holdout" if n % 5 == 0 else "train") for n in range(25)),
        image_row(100, "owl", status="conflicting", split="none"),
        replace(image_row(101, "cat", status="unreadable", split="none"), width=None, height=None, format=None),
    ]


def write(store: DirectoryStore, rows: list[ImageRow], shard_bytes: int = 2**20) -> WindowDocument:
    return write_window(store, "images", "delivery", rows, read, shard_bytes=shard_bytes)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def first_shard(document: WindowDocument) -> str:
    return next(name for name in sorted(document.files) if name.startswith("images-00000"))


def folder_of(store: DirectoryStore, document: WindowDocument) -> Path:
    return store.root / "datasets" / "images" / "windows" / document.id


# --- identity and split


@pytest.mark.parametrize("seed", range(3))
def test_identity_does_not_depend_on_the_order(seed: int) -> None:
    rows = some_rows()
    shuffled = Random(seed).sample(rows, len(rows))
    assert window_id(shuffled) == window_id(rows)


def test_identity_is_thirty_two_hex_digits() -> None:
    identity = window_id(some_rows())
    assert len(identity) == 32
    assert set(identity) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "f" * 64},
        {"label": "owl"},
        {"group": "clip-1"},
        {"status": "unreadable"},
        {"split": "holdout"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_changes_with_what_the_images_are(change: dict[str, str]) -> None:
    rows = [image_row(n) for n in range(4)]
    assert window_id([replace(rows[0], **change), *rows[1:]]) != window_id(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"source": "elsewhere/x.png"}, {"shard": "s", "offset": 3}, {"mean": 0.9}])
def test_identity_does_not_change_with_names_packing_or_statistics(change: dict[str, object]) -> None:
    rows = [image_row(n) for n in range(4)]
    assert window_id([replace(rows[0], **change), *rows[1:]]) == window_id(rows)  # type: ignore[arg-type]


def test_identity_tells_one_image_from_the_same_twice() -> None:
    assert window_id([image_row(1)]) != window_id([image_row(1), image_row(1)])


def test_labels_cannot_be_moved_between_the_fields_of_a_row() -> None:
    assert window_id([replace(image_row(1), label="a", group="b")]) != window_id(
        [replace(image_row(1), label='a", "b', group=None)]
    )


def digest(number: int) -> str:
    return sha256_hex(str(number).encode())


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_holdouts_share_is_the_fraction(fraction: float) -> None:
    held_out = sum(split_of(digest(n), None, fraction) == "holdout" for n in range(5000))
    assert binom.ppf(0.0005, 5000, fraction) <= held_out <= binom.ppf(0.9995, 5000, fraction)


def test_groups_are_held_out_at_the_same_rate() -> None:
    held_out = sum(split_of(digest(n), f"clip-{n}", 0.2) == "holdout" for n in range(5000))
    assert binom.ppf(0.0005, 5000, 0.2) <= held_out <= binom.ppf(0.9995, 5000, 0.2)


@pytest.mark.parametrize("group", ["clip-0", "clip-1", "device 7", "Ü", "."])
def test_a_group_is_on_one_side(group: str) -> None:
    assert len({split_of(digest(n), group, 0.3) for n in range(200)}) == 1


def test_a_larger_holdout_contains_the_smaller_one() -> None:
    small, large = ({n for n in range(500) if split_of(digest(n), None, f) == "holdout"} for f in (0.1, 0.3))
    assert small < large


def test_the_split_is_what_it_was() -> None:
    # An image that moves from holdout to train spoils every comparison: these answers must never change. They are
    # the first hexadecimal digits of SHA-256(hex digest) as a fraction: 51 e0 d8 5b | 03 c8 9e 10 against 0.2 = 33.33.
    answers = "".join(split_of(digest(n), None, 0.2)[0] for n in range(8))
    assert answers == "tttthtth"
    # SHA-256("clip-0") to ("clip-7"): 33.. 70 28 0f | f9 d3 99 12.
    assert "".join(split_of("", f"clip-{n}", 0.2)[0] for n in range(8)) == "tthhttth"


# --- writing


def test_the_document_counts_what_was_packed(store: DirectoryStore) -> None:
    document = write(store, some_rows())
    assert (document.rows, document.usable, document.train_rows, document.holdout_rows) == (27, 25, 20, 5)
    assert document.class_counts == {"cat": 12, "dog": 13}
    assert document.status_counts == {"conflicting": 1, "ok": 25, "unreadable": 1}
    assert document.image_bytes == sum(500 + n for n in range(25))
    assert document.id == window_id(some_rows())
    assert sorted(name.rsplit("-", 1)[0] for name in document.files) == ["images-00000", "manifest"]


def test_bytes_depend_on_the_images_only(tmp_path: Path) -> None:
    rows = some_rows()
    stores = [DirectoryStore(tmp_path / name) for name in ("first", "second")]
    first = write(stores[0], rows, 4000)
    second = write(stores[1], Random(1).sample(rows, len(rows)), 4000)
    assert first.files == second.files
    assert len(first.files) > 3
    for name in first.files:
        assert (folder_of(stores[0], first) / name).read_bytes() == (folder_of(stores[1], second) / name).read_bytes()


def test_recorded_digests_are_those_of_the_files(store: DirectoryStore) -> None:
    document = write(store, some_rows(), 4000)
    folder = folder_of(store, document)
    assert {name: sha256_hex((folder / name).read_bytes()) for name in document.files} == document.files
    assert {path.name for path in folder.iterdir()} == {*document.files, "window.json"}


def test_writing_again_keeps_the_window_and_reads_no_image(store: DirectoryStore) -> None:
    document = write(store, some_rows())

    def refuse(row: ImageRow) -> bytes:
        raise AssertionError(row.source)

    again = write_window(store, "images", "another delivery", some_rows(), refuse, shard_bytes=1)
    assert again == document


def test_a_writer_that_was_cut_off_is_completed(store: DirectoryStore) -> None:
    document = write(store, some_rows())
    (folder_of(store, document) / "window.json").unlink()
    with pytest.raises(ConfigurationError, match="no window"):
        Window.open(store, "images", document.id)
    again = write(store, some_rows())
    assert (again.id, again.files) == (document.id, document.files)


def test_a_source_that_changes_during_packing_leaves_no_window(store: DirectoryStore) -> None:
    rows = some_rows()

    def changing(row: ImageRow) -> bytes:
        return read(row) if row.source != "cat/013.png" else b"written meanwhile"

    with pytest.raises(IntegrityError, match=r"cat/013\.png changed while it was being packed"):
        write_window(store, "images", "delivery", rows, changing, shard_bytes=2**20)
    with pytest.raises(ConfigurationError):
        Window.open(store, "images", window_id(rows))


def test_progress_counts_every_packed_image(store: DirectoryStore) -> None:
    told: list[int] = []
    write_window(store, "images", "delivery", some_rows(), read, shard_bytes=3000, progress=told.append)
    assert sum(told) == 25


def test_a_window_without_usable_images_is_a_window(store: DirectoryStore) -> None:
    rows = [image_row(n, status="unreadable", split="none") for n in range(3)]
    window = Window.open(store, "images", write(store, rows).id)
    assert window.rows() == []
    assert len(window.manifest()) == 3
    assert list(window.images([])) == []
    assert list(window.document.files) == [window.document.manifest]


# --- shards


def test_shards_are_closed_at_their_size(store: DirectoryStore) -> None:
    document = write(store, some_rows(), shard_bytes=2000)
    window = Window.open(store, "images", document.id)
    sizes: dict[str, int] = {}
    for row in window.rows():
        assert row.shard is not None
        sizes[row.shard] = sizes.get(row.shard, 0) + row.bytes
    assert [name[:12] for name in sorted(sizes)] == [f"images-{n:05d}" for n in range(len(sizes))]
    assert len(sizes) >= 25 * 500 // 2000
    assert all(size <= 2000 for size in sizes.values())


def test_an_image_larger_than_a_shard_gets_one_of_its_own(store: DirectoryStore) -> None:
    document = write(store, some_rows(), shard_bytes=1)
    assert len(document.files) == 26


def test_a_shard_is_a_webdataset(store: DirectoryStore) -> None:
    rows = some_rows()
    document = write(store, rows)
    with tarfile.open(folder_of(store, document) / first_shard(document)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
    usable = [row for row in rows if row.status == "ok"]
    assert members == {
        **{f"{row.sha256}.png": read(row) for row in usable},
        **{f"{row.sha256}.cls": row.label.encode() for row in usable},
    }
    names = list(members)
    assert [name.partition(".")[0] for name in names[::2]] == [name.partition(".")[0] for name in names[1::2]]
    assert names[::2] == sorted(names[::2])


@pytest.mark.parametrize("number", [10, 11, 12, 13, 524])
def test_offsets_point_at_the_images_around_a_tar_block(store: DirectoryStore, number: int) -> None:
    # 510, 511, 512, 513 and 1,024 bytes: one block is 512.
    window = Window.open(store, "images", write(store, [image_row(1), image_row(number), image_row(2)]).id)
    data = (folder_of(store, window.document) / first_shard(window.document)).read_bytes()
    for row in window.rows():
        assert row.offset is not None
        assert data[row.offset : row.offset + row.bytes] == read(row)


# --- reading


def test_the_manifest_gives_back_the_rows(store: DirectoryStore) -> None:
    window = Window.open(store, "images", write(store, some_rows()).id)
    manifest = [replace(row, shard=None, offset=None) for row in window.manifest()]
    assert sorted(manifest, key=lambda r: r.source) == sorted(some_rows(), key=lambda r: r.source)
    statuses = [row.status for row in manifest]
    assert statuses[:25] == ["ok"] * 25
    digests = [row.sha256 for row in manifest[:25]]
    assert digests == sorted(digests)


def test_the_manifest_has_the_columns_of_the_schema(store: DirectoryStore) -> None:
    import pyarrow.parquet as pq

    window = Window.open(store, "images", write(store, some_rows()).id)
    table = pq.ParquetFile(io.BytesIO(window.manifest_bytes())).read()
    assert table.schema.equals(SCHEMA)
    assert table["key"].to_pylist() == table["sha256"].to_pylist()


def test_rows_can_be_had_by_side(store: DirectoryStore) -> None:
    window = Window.open(store, "images", write(store, some_rows()).id)
    assert [len(window.rows(split)) for split in (None, "train", "holdout")] == [25, 20, 5]
    assert {row.split for row in window.rows("holdout")} == {"holdout"}


def test_images_come_with_their_rows(store: DirectoryStore) -> None:
    window = Window.open(store, "images", write(store, some_rows(), 3000).id)
    pairs = list(window.images(window.rows()))
    assert len(pairs) == 25
    assert all(data == read(row) for row, data in pairs)


def test_an_unknown_window_says_how_to_make_one(store: DirectoryStore) -> None:
    write(store, some_rows())
    with pytest.raises(ConfigurationError, match="retrain ingest"):
        Window.open(store, "images", "0" * 32)


def flip_image(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[512] ^= 1  # the first byte of the first image: the header takes one block
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


@pytest.mark.parametrize("damage", [flip_image, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_shard_is_named(store: DirectoryStore, damage: Callable[[Path], None]) -> None:
    window = Window.open(store, "images", write(store, some_rows()).id)
    rows = window.rows()
    damage(folder_of(store, window.document) / first_shard(window.document))
    with pytest.raises(IntegrityError, match=first_shard(window.document)) as caught:
        list(window.images(rows))
    assert "delivery" in caught.value.next_command


@pytest.mark.parametrize("damage", [flip_last, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_manifest_is_named(store: DirectoryStore, damage: Callable[[Path], None]) -> None:
    window = Window.open(store, "images", write(store, some_rows()).id)
    damage(folder_of(store, window.document) / window.document.manifest)
    for reader in (window.manifest, window.manifest_bytes, window.rows):
        with pytest.raises(IntegrityError, match=window.document.manifest):
            reader()


def test_a_window_document_that_is_none_is_an_integrity_error(store: DirectoryStore) -> None:
    document = write(store, some_rows())
    (folder_of(store, document) / "window.json").write_text(json.dumps({"id": document.id}))
    with pytest.raises(IntegrityError, match="WindowDocument"):
        Window.open(store, "images", document.id)


def test_two_deliveries_of_the_same_images_written_at_once_leave_a_readable_window(store: DirectoryStore) -> None:
    # File names are not part of the identity but stand in the manifest: the slower writer must not replace the
    # manifest whose digest the faster one has recorded.
    rows = some_rows()
    renamed = [replace(row, source=f"again/{row.source}") for row in rows]
    raced: list[WindowDocument] = []

    def overtaken(row: ImageRow) -> bytes:
        if not raced:
            raced.append(write(store, renamed))
        return read(row)

    document = write_window(store, "images", "delivery", rows, overtaken, shard_bytes=2**20)
    assert document.id == raced[0].id
    assert len(Window.open(store, "images", document.id).manifest()) == 27


# --- windows that follow others


def stored(store: DirectoryStore, rows: list[ImageRow]) -> Window:
    return Window(store, write(store, rows))


def numbers(rows: list[ImageRow]) -> set[int]:
    return {int(Path(row.source).stem) for row in rows}


def grouped(number: int, group: str | None, split: str) -> ImageRow:
    return replace(image_row(number, split=split), group=group)


@pytest.mark.parametrize("split", [None, "train", "holdout"])
def test_without_an_earlier_window_every_usable_row_is_selected(store: DirectoryStore, split: Split | None) -> None:
    window = stored(store, some_rows())
    assert select_rows(window, split, []) == window.rows(split)


def test_the_same_bytes_under_another_group_stay_in_the_earlier_window(store: DirectoryStore) -> None:
    earlier = stored(store, [grouped(1, None, "holdout"), grouped(2, "old", "holdout"), grouped(3, None, "train")])
    window = stored(store, [grouped(n, "clip", "train") for n in (1, 2, 3, 4)])
    assert numbers(select_rows(window, "train", [earlier])) == {4}
    assert numbers(select_rows(window, None, [earlier])) == {4}


def test_a_group_that_would_change_sides_is_left_out(store: DirectoryStore) -> None:
    earlier = stored(store, [grouped(1, "stays", "train"), grouped(2, "moves", "holdout"), grouped(3, None, "holdout")])
    window = stored(
        store,
        [
            grouped(4, "stays", "train"),
            grouped(5, "moves", "train"),
            grouped(6, "new", "train"),
            grouped(7, None, "train"),
        ],
    )
    assert numbers(select_rows(window, "train", [earlier])) == {4, 6, 7}
    assert numbers(select_rows(window, None, [earlier])) == {4, 6, 7}


def test_a_group_stays_where_it_stood_first(store: DirectoryStore) -> None:
    first, second = stored(store, [grouped(1, "clip", "holdout")]), stored(store, [grouped(2, "clip", "train")])
    third = stored(store, [grouped(3, "clip", "train"), grouped(4, "clip", "holdout")])
    assert numbers(select_rows(third, None, [first, second])) == {4}
    assert select_rows(second, None, [first]) == []


def test_rows_that_an_earlier_window_set_aside_are_new(store: DirectoryStore) -> None:
    earlier = stored(store, [image_row(1, status="conflicting", split="none"), image_row(2)])
    window = stored(store, [image_row(1), image_row(2), image_row(3)])
    assert numbers(select_rows(window, "train", [earlier])) == {1, 3}


@pytest.mark.parametrize("most", [0, 10**6], ids=["whole shards", "one by one"])
def test_images_are_the_same_however_they_are_read(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    window = stored(store, some_rows())
    monkeypatch.setattr("components.core.windows.RANGED_READS", most)
    pairs = list(window.images(window.rows()))
    assert len(pairs) == 25
    assert all(data == read(row) for row, data in pairs)
    store.delete(f"datasets/images/windows/{window.document.id}/{first_shard(window.document)}")
    with pytest.raises(IntegrityError, match=r"images-00000.* is missing"):
        list(window.images(window.rows()))
