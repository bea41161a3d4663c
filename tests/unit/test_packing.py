"""Packing: what a window's document counts, that its bytes are a matter of the images only, and shards that others
read."""

import json
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.contracts import WindowDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import SCHEMA, Window, window_id
from components.ingest.packing import PACKING, Shard, ShardTask, cut_shards, write_shard, write_window
from components.ingest.processes import Workers
from tests.unit.conftest import Row, content, image_row, number_of, pack, spool


def some_rows() -> list[Row]:
    return [
        *(image_row(n, "cat" if n % 2 else "dog", split="holdout" if n % 5 == 0 else "train") for n in range(25)),
        image_row(100, "owl", status="conflicting", split="none"),
        image_row(101, status="unreadable", reason="cut off", split="none", format=None),
    ]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


def files_of(store: DirectoryStore, document: WindowDocument) -> dict[str, bytes]:
    """Every file of a window but `window.json`, which tells the time."""
    place = store.root / "datasets" / "images" / "windows" / document.id
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name != "window.json"}


def shards_of(store: DirectoryStore, document: WindowDocument) -> list[Path]:
    place = store.root / "datasets" / "images" / "windows" / document.id
    return sorted(place.glob("images-*.tar"))


# --- the document


def test_the_document_counts_what_was_packed(store: DirectoryStore, folder: Path, workers: Workers) -> None:
    table = spool(folder, some_rows())
    document = write_window(store, "images", "delivery", table, folder, workers, 2**20)
    assert (document.rows, document.usable, document.train_rows, document.holdout_rows) == (27, 25, 20, 5)
    assert document.unlabelled == 0
    assert document.class_counts == {"cat": 12, "dog": 13}
    assert document.status_counts == {"conflicting": 1, "ok": 25, "unreadable": 1}
    assert document.image_bytes == sum(500 + n for n in range(25))
    assert document.id == window_id(table)
    assert sorted(name.rsplit("-", 1)[0] for name in document.files) == ["images-00000", "manifest"]
    assert (document.dataset, document.source) == ("images", "delivery")


def test_images_without_a_label_are_counted_and_are_of_no_class_and_no_side(
    store: DirectoryStore, workers: Workers
) -> None:
    rows = [
        *(image_row(n, split="holdout" if n < 2 else "train") for n in range(5)),
        *(image_row(n, None, split="holdout" if n < 8 else "train") for n in range(5, 12)),
        image_row(50, None, status="duplicate", split="none"),
    ]
    window = pack(store, rows, workers)
    document = window.document
    assert (document.rows, document.usable, document.unlabelled) == (13, 12, 7)
    assert (document.train_rows, document.holdout_rows) == (3, 2)  # what can train, and what can judge
    assert document.class_counts == {"cat": 5}
    assert document.status_counts == {"duplicate": 1, "ok": 12}
    labels = {number_of(row["source"]): row["label"] for row in window.manifest().to_pylist()}
    assert labels == {**dict.fromkeys(range(5), "cat"), **dict.fromkeys([*range(5, 12), 50])}
    assert len(window.rows()) == 12
    assert sum(1 for _ in window.images(window.rows())) == 12


def test_a_document_of_an_earlier_release_has_no_unlabelled_images(store: DirectoryStore, workers: Workers) -> None:
    document = pack(store, some_rows(), workers).document
    path = store.root / "datasets" / "images" / "windows" / document.id / "window.json"
    old = json.loads(path.read_bytes())
    del old["unlabelled"]
    path.write_text(json.dumps(old))
    assert Window.open(store, "images", document.id).document == document


def test_recorded_digests_are_those_of_the_files(store: DirectoryStore, workers: Workers) -> None:
    window = pack(store, some_rows(), workers, shard_bytes=4000)
    files = files_of(store, window.document)
    assert {name: sha256_hex(data) for name, data in files.items()} == window.document.files
    assert all(sha256_hex(data)[:12] == Path(name).stem.rsplit("-", 1)[1] for name, data in files.items())
    window.verify()


def test_a_window_without_usable_images_is_a_window(store: DirectoryStore, workers: Workers) -> None:
    rows = [image_row(n, status="unreadable", split="none", format=None) for n in range(3)]
    window = pack(store, rows, workers)
    assert (len(window.rows()), len(window.manifest())) == (0, 3)
    assert window.manifest().schema.equals(SCHEMA)
    assert list(window.images(window.rows())) == []
    assert list(window.document.files) == [window.document.manifest]


def test_a_window_of_unlabelled_images_only_is_a_window(store: DirectoryStore, workers: Workers) -> None:
    window = pack(store, [image_row(n, None) for n in range(3)], workers)
    assert (window.document.usable, window.document.unlabelled, window.document.class_counts) == (3, 3, {})
    assert window.rows()["label"].null_count == 3


# --- the same images are the same bytes


@given(
    numbers=st.lists(st.integers(0, 90), min_size=1, max_size=12, unique=True),
    seed=st.integers(0, 99),
    files=st.integers(1, 3),
    gap=st.sampled_from([0, 1, 700]),
    shard_bytes=st.sampled_from([1, 1200, 2**20]),
)
@settings(deadline=None, max_examples=40)
def test_bytes_depend_on_the_images_only(
    workers: Workers, numbers: list[int], seed: int, files: int, gap: int, shard_bytes: int
) -> None:
    def made(number: int) -> Row:
        kind = ("ok", "ok", "ok", "ok", "conflicting", "unreadable", "duplicate")[number % 7]
        label = (None, "cat", "dog")[number % 3]
        return image_row(number, label, kind, split="train" if kind == "ok" else "none")

    rows = [made(number) for number in numbers]
    rows.append({**rows[0], "source": f"again/{numbers[0]:03d}.png", "status": "duplicate", "split": "none"})
    with tempfile.TemporaryDirectory() as root:
        written = []
        for turn, (order, layout) in enumerate(((rows, (1, 0)), (Random(seed).sample(rows, len(rows)), (files, gap)))):
            store, folder = DirectoryStore(Path(root) / f"store-{turn}"), Path(root) / f"spool-{turn}"
            folder.mkdir()
            table = spool(folder, order, *layout)
            document = write_window(store, "images", "delivery", table, folder, workers, shard_bytes)
            written.append((document.files, document.id, files_of(store, document)))
    assert written[0] == written[1]
    assert set(written[0][0]) == set(written[0][2])


def test_the_number_of_processes_does_not_show(tmp_path: Path, workers: Workers) -> None:
    documents = []
    with Workers(3, 4 * 2**30) as three:
        for name, crowd in (("one", workers), ("three", three)):
            (tmp_path / name).mkdir()
            documents.append(pack(DirectoryStore(tmp_path / name / "store"), some_rows(), crowd, 2000).document)
    assert documents[0].files == documents[1].files
    assert len(documents[0].files) > 6


def test_nothing_is_left_beside_the_spool(store: DirectoryStore, folder: Path, workers: Workers) -> None:
    table = spool(folder, some_rows())
    before = set(folder.iterdir())
    write_window(store, "images", "delivery", table, folder, workers, 3000)
    assert set(folder.iterdir()) == before


# --- an existing window, a race, a cut, a fault


def test_writing_again_keeps_the_window_and_reads_no_image(
    store: DirectoryStore, folder: Path, workers: Workers
) -> None:
    table = spool(folder, some_rows())
    document = write_window(store, "images", "delivery", table, folder, workers, 2**20)
    shutil.rmtree(folder)
    assert write_window(store, "images", "another delivery", table, folder, workers, 1) == document


def test_a_writer_that_was_cut_off_is_completed(store: DirectoryStore, workers: Workers) -> None:
    document = pack(store, some_rows(), workers).document
    store.delete(f"datasets/images/windows/{document.id}/window.json")
    with pytest.raises(ConfigurationError, match="no window"):
        Window.open(store, "images", document.id)
    again = pack(store, some_rows(), workers).document
    assert (again.id, again.files) == (document.id, document.files)


@pytest.mark.parametrize("damage", ["other bytes", "cut"])
def test_a_spool_that_changed_leaves_no_window(
    store: DirectoryStore, folder: Path, workers: Workers, damage: str
) -> None:
    table = spool(folder, some_rows())
    path = folder / "0.bytes"
    data = path.read_bytes()
    path.write_bytes(data[:5000] if damage == "cut" else data[:5000] + b"!" + data[5001:])
    with pytest.raises(IntegrityError, match=f"half-done ingest left in {folder} is damaged"):
        write_window(store, "images", "delivery", table, folder, workers, 3000)
    with pytest.raises(ConfigurationError):
        Window.open(store, "images", window_id(table))


def test_progress_counts_every_packed_image(store: DirectoryStore, folder: Path, workers: Workers) -> None:
    told: list[int] = []
    write_window(store, "images", "delivery", spool(folder, some_rows()), folder, workers, 3000, told.append)
    assert sum(told) == 25
    assert len(told) > 3


def test_two_deliveries_of_the_same_images_written_at_once_leave_a_readable_window(
    store: DirectoryStore, folder: Path, workers: Workers
) -> None:
    # File names are not part of the identity but stand in the manifest: the slower writer must not replace the
    # manifest whose digest the faster one has recorded, nor its shards with ones that are cut elsewhere.
    raced: list[WindowDocument] = []

    def overtaken(packed: int) -> None:
        if not raced:
            renamed = [{**row, "source": f"again/{row['source']}"} for row in some_rows()]
            raced.append(pack(store, renamed, workers, shard_bytes=2000).document)

    document = write_window(
        store, "images", "delivery", spool(folder, some_rows()), folder, workers, 5000, progress=overtaken
    )
    assert document == raced[0]
    window = Window.open(store, "images", document.id)
    assert len(window.manifest()) == 27
    window.verify()
    assert sum(1 for _ in window.images(window.rows())) == 25


# --- shards


def slow_cuts(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Take rows while they fit; a row that fits nowhere stands alone."""
    start = 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and sum(sizes[start : end + 1]) <= most:
            end += 1
        yield start, end
        start = end


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ([], []),
        ([3], [(0, 1)]),
        ([99], [(0, 1)]),
        ([4, 6], [(0, 2)]),
        ([4, 7], [(0, 1), (1, 2)]),
        ([99, 1, 9, 1], [(0, 1), (1, 3), (3, 4)]),
        ([0, 10, 0, 0], [(0, 4)]),
    ],
)
def test_cuts_of_ten_by_hand(sizes: list[int], cuts: list[tuple[int, int]]) -> None:
    assert list(cut_shards(sizes, 10)) == cuts


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60))
def test_cuts_are_those_of_a_plain_search(sizes: list[int], most: int) -> None:
    assert list(cut_shards(sizes, most)) == list(slow_cuts(sizes, most))


def test_shards_are_closed_at_their_size(store: DirectoryStore, workers: Workers) -> None:
    window = pack(store, some_rows(), workers, shard_bytes=2000)
    sizes: dict[str, int] = {}
    for row in window.rows().to_pylist():
        sizes[row["shard"]] = sizes.get(row["shard"], 0) + row["bytes"]
    assert [name[:12] for name in sorted(sizes)] == [f"images-{n:05d}" for n in range(len(sizes))]
    assert len(sizes) >= 25 * 500 // 2000
    assert all(size <= 2000 for size in sizes.values())


def test_an_image_larger_than_a_shard_gets_one_of_its_own(store: DirectoryStore, workers: Workers) -> None:
    assert len(pack(store, some_rows(), workers, shard_bytes=1).document.files) == 26


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in tar} == {(0, 0, 0, "", "", tarfile.REGTYPE)}
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_shard_is_a_webdataset(store: DirectoryStore, workers: Workers) -> None:
    rows = [*some_rows(), image_row(30, "Größe / 猫"), image_row(31, format="JPEG")]
    members = read_tar(shards_of(store, pack(store, rows, workers).document)[0])
    usable = [row for row in rows if row["status"] == "ok"]
    assert members == {
        **{f"{row['sha256']}.{row['format'].lower()}": content(number_of(row["source"])) for row in usable},
        **{f"{row['sha256']}.cls": row["label"].encode() for row in usable},
    }
    names = list(members)
    assert [name.partition(".")[0] for name in names[::2]] == [name.partition(".")[0] for name in names[1::2]]
    assert names[::2] == sorted(names[::2])


def test_an_image_without_a_label_has_no_cls_member(store: DirectoryStore, workers: Workers) -> None:
    rows = [image_row(1), image_row(2, None), image_row(3, "")]
    members = read_tar(shards_of(store, pack(store, rows, workers).document)[0])
    first, second, third = (row["sha256"] for row in rows)
    assert set(members) == {f"{first}.png", f"{first}.cls", f"{second}.png", f"{third}.png", f"{third}.cls"}
    assert members[f"{third}.cls"] == b""


def test_all_shards_together_hold_every_image_once(store: DirectoryStore, workers: Workers) -> None:
    document = pack(store, some_rows(), workers, 2000).document
    names = [name for path in shards_of(store, document) for name in read_tar(path)]
    assert len(names) == len(set(names)) == 2 * 25


@pytest.mark.parametrize("number", [10, 11, 12, 13, 524])
def test_offsets_point_at_the_images_around_a_tar_block(store: DirectoryStore, workers: Workers, number: int) -> None:
    # 510, 511, 512, 513 and 1,024 bytes: one block is 512.
    window = pack(store, [image_row(1), image_row(number), image_row(2, None)], workers)
    (path,) = shards_of(store, window.document)
    data = path.read_bytes()
    for row in window.rows().to_pylist():
        assert data[row["offset"] : row["offset"] + row["bytes"]] == content(number_of(row["source"]))


def test_a_shard_is_what_tarfile_writes(folder: Path) -> None:
    rows = [image_row(1), image_row(12, None), image_row(13, "dog")]
    shard = write_shard(ShardTask(rows=spool(folder, rows).select(PACKING), folder=folder, path=folder / "s.tar"))
    with tarfile.open(folder / "s.tar") as ours, tarfile.open(folder / "t.tar", "w", tarfile.USTAR_FORMAT) as theirs:
        for member in ours:
            theirs.addfile(member, ours.extractfile(member))
    ours_bytes, theirs_bytes = (folder / "s.tar").read_bytes(), (folder / "t.tar").read_bytes()
    assert theirs_bytes.startswith(ours_bytes)
    assert not any(theirs_bytes[len(ours_bytes) :])  # tarfile fills up to 20 blocks
    assert shard.digest == sha256_hex(ours_bytes)
    assert [ours_bytes[at : at + 500 + n] for at, n in zip(shard.offsets, (1, 12, 13), strict=True)] == [
        content(n) for n in (1, 12, 13)
    ]


def test_a_shard_takes_only_its_own_rows_to_the_worker(store: DirectoryStore, folder: Path) -> None:
    rows = [image_row(n) for n in range(200)]
    sizes = []

    class Here:
        def map(self, function: Callable[[ShardTask], Shard], tasks: Iterable[ShardTask]) -> Iterator[Shard]:
            for task in tasks:
                sizes.append(len(pickle.dumps(task)))
                yield function(task)

    table = spool(folder, rows)
    write_window(store, "images", "delivery", table, folder, Here(), 3000)  # type: ignore[arg-type]
    assert len(sizes) > 20
    assert max(sizes) < len(pickle.dumps(table)) / 4
