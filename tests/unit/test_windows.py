"""Windows: their identity, reading them back, what is new in one, and that damage is noticed."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from components.core.contracts import WindowDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import (
    FACTS,
    READING,
    SCHEMA,
    Known,
    Split,
    Window,
    from_parquet,
    split_of,
    to_parquet,
    window_id,
)
from components.ingest.inspection import ImageFacts
from components.ingest.processes import Workers
from components.ingest.workers import SPOOLED
from tests.unit.conftest import Row, content, image_row, number_of, pack


def some_rows() -> list[Row]:
    return [
        *(image_row(n, "cat" if n % 2 else "dog", split="holdout" if n % 5 == 0 else "train") for n in range(25)),
        image_row(100, "owl", status="conflicting", split="none"),
        image_row(101, status="unreadable", reason="cut off", split="none", width=None, height=None, format=None),
    ]


def identity_of(rows: list[Row]) -> str:
    return window_id(pa.Table.from_pylist(rows, schema=SPOOLED))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def window(store: DirectoryStore, workers: Workers) -> Window:
    return pack(store, some_rows(), workers)


def first_shard(document: WindowDocument) -> str:
    return next(name for name in sorted(document.files) if name.startswith("images-00000"))


def folder_of(window: Window) -> Path:
    assert isinstance(window.store, DirectoryStore)
    return window.store.root / "datasets" / "images" / "windows" / window.document.id


# --- identity and split


@pytest.mark.parametrize("seed", range(3))
def test_identity_does_not_depend_on_the_order(seed: int) -> None:
    rows = some_rows()
    shuffled = Random(seed).sample(rows, len(rows))
    assert identity_of(shuffled) == identity_of(rows)


def test_identity_does_not_depend_on_the_chunks_of_the_table() -> None:
    table = pa.Table.from_pylist(some_rows(), schema=SPOOLED)
    assert window_id(pa.concat_tables([table[:7], table[7:9], table[9:]])) == window_id(table)


def test_identity_is_thirty_two_hex_digits() -> None:
    identity = identity_of(some_rows())
    assert len(identity) == 32
    assert set(identity) <= set("0123456789abcdef")


def test_identity_is_what_it_was() -> None:
    # Windows, lineages and ledgers name each other by it. By hand: the rows as JSON lists, sorted, one a line.
    rows = [image_row(2, None, split="holdout"), image_row(1, group="clip")]
    lines = sorted(json.dumps([row["sha256"], row["label"], row["group"], row["status"], row["split"]]) for row in rows)
    assert identity_of(rows) == sha256_hex("\n".join(lines).encode())[:32] == "fd3695dc8a0df117879b2a8b5a79fab3"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "f" * 64},
        {"label": "owl"},
        {"label": None},
        {"group": "clip-1"},
        {"status": "unreadable"},
        {"split": "holdout"},
    ],
    ids=str,
)
def test_identity_changes_with_what_the_images_are(change: Row) -> None:
    rows = [image_row(n) for n in range(4)]
    assert identity_of([{**rows[0], **change}, *rows[1:]]) != identity_of(rows)


@pytest.mark.parametrize(
    "change", [{"source": "elsewhere/x.png"}, {"spool": "s", "at": 3}, {"mean": 0.9}, {"reason": "r"}], ids=str
)
def test_identity_does_not_change_with_names_packing_or_statistics(change: Row) -> None:
    rows = [image_row(n) for n in range(4)]
    assert identity_of([{**rows[0], **change}, *rows[1:]]) == identity_of(rows)


def test_identity_tells_one_image_from_the_same_twice() -> None:
    assert identity_of([image_row(1)]) != identity_of([image_row(1), image_row(1)])


def test_identity_tells_no_label_from_one_that_is_called_null_or_empty() -> None:
    names = [None, "null", "None", ""]
    assert len({identity_of([image_row(1, name)]) for name in names}) == len(names)


def test_labels_cannot_be_moved_between_the_fields_of_a_row() -> None:
    assert identity_of([image_row(1, "a", group="b")]) != identity_of([image_row(1, 'a", "b')])


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


# --- reading


def test_the_manifest_gives_back_the_rows(window: Window) -> None:
    manifest = window.manifest().drop_columns(["key", "shard", "offset"]).to_pylist()
    assert sorted(manifest, key=lambda row: row["source"]) == sorted(some_rows(), key=lambda row: row["source"])
    assert [row["status"] for row in manifest[:25]] == ["ok"] * 25
    digests = [row["sha256"] for row in manifest[:25]]
    assert digests == sorted(digests)


def test_the_manifest_has_the_columns_of_the_schema(window: Window) -> None:
    table = pq.ParquetFile(pa.BufferReader(window.manifest_bytes)).read()
    assert table.schema.equals(SCHEMA)
    assert window.manifest().schema.equals(SCHEMA)
    assert table["key"].to_pylist() == table["sha256"].to_pylist()


@pytest.mark.parametrize("columns", [("label",), ("split", "label"), ("offset", "sha256", "mean")])
def test_columns_that_were_asked_for_are_all_that_comes(window: Window, columns: tuple[str, ...]) -> None:
    everything = window.manifest()
    assert window.manifest(columns).to_pydict() == everything.select(columns).to_pydict()
    assert window.rows(columns=columns).column_names == list(columns)
    usable = [row for row in everything.to_pylist() if row["status"] == "ok"]
    assert window.rows(columns=columns).to_pylist() == [{name: row[name] for name in columns} for row in usable]


def test_rows_come_with_all_that_reading_them_needs(window: Window) -> None:
    assert tuple(window.rows().column_names) == READING


def test_rows_can_be_had_by_side(window: Window) -> None:
    assert [len(window.rows(split)) for split in (None, "train", "holdout")] == [25, 20, 5]
    assert set(window.rows("holdout")["split"].to_pylist()) == {"holdout"}
    assert window.rows("holdout", ("label",)).to_pydict() == window.rows("holdout").select(["label"]).to_pydict()


def test_the_manifest_is_fetched_once(store: DirectoryStore, window: Window) -> None:
    fresh = Window.open(store, "images", window.document.id)
    first = fresh.rows()
    store.delete(f"datasets/images/windows/{window.document.id}/{window.document.manifest}")
    assert fresh.rows().equals(first)
    assert len(fresh.manifest()) == 27


def test_parquet_gives_back_an_empty_table() -> None:
    empty = SCHEMA.empty_table()
    assert from_parquet(to_parquet(empty)).equals(empty)
    assert from_parquet(to_parquet(empty), ("label",)).column_names == ["label"]


def told(window: Window, rows: pa.Table) -> dict[int, bytes]:
    """Number of each image, and the bytes that came with its position."""
    sources = rows["source"].to_pylist()
    pairs = [(number_of(sources[position]), data) for position, data in window.images(rows)]
    assert len(dict(pairs)) == len(pairs) == len(rows)
    return dict(pairs)


def test_images_come_with_their_positions(store: DirectoryStore, workers: Workers) -> None:
    window = pack(store, some_rows(), workers, shard_bytes=3000)
    assert told(window, window.rows()) == {n: content(n) for n in range(25)}


@pytest.mark.parametrize("positions", [[], [3], [24, 0, 7], list(range(24, -1, -2))], ids=str)
def test_positions_are_those_in_the_rows_that_were_asked_for(
    store: DirectoryStore, workers: Workers, positions: list[int]
) -> None:
    window = pack(store, some_rows(), workers, shard_bytes=3000)
    rows = window.rows().take(pa.array(positions, pa.int64()))
    wanted = [number_of(source) for source in rows["source"].to_pylist()]
    assert told(window, rows) == {n: content(n) for n in wanted}


def test_an_image_that_is_asked_for_twice_comes_twice(window: Window) -> None:
    rows = window.rows().take(pa.array([5, 2, 5]))
    pairs = sorted(window.images(rows))
    assert [position for position, _ in pairs] == [0, 1, 2]
    assert pairs[0][1] == pairs[2][1] != pairs[1][1]


def test_an_unknown_window_says_how_to_make_one(store: DirectoryStore, window: Window) -> None:
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


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = pytest.mark.parametrize(
    "damage", [flip_image, cut, empty, Path.unlink], ids=["flipped", "cut", "emptied", "missing"]
)


@DAMAGES
@pytest.mark.parametrize("most", [0, 10**6], ids=["whole shards", "one by one"])
def test_a_damaged_shard_is_named(
    window: Window, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], most: int
) -> None:
    monkeypatch.setattr("components.core.windows.RANGED_READS", most)
    rows = window.rows()
    damage(folder_of(window) / first_shard(window.document))
    with pytest.raises(IntegrityError, match=first_shard(window.document)) as caught:
        list(window.images(rows))
    assert "delivery" in caught.value.next_command


@DAMAGES
def test_a_damaged_shard_is_found_by_verifying(window: Window, damage: Callable[[Path], None]) -> None:
    window.verify()
    damage(folder_of(window) / first_shard(window.document))
    with pytest.raises(IntegrityError, match=first_shard(window.document)):
        window.verify()


@pytest.mark.parametrize("damage", [flip_last, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_manifest_is_named(window: Window, damage: Callable[[Path], None]) -> None:
    damage(folder_of(window) / window.document.manifest)
    fresh = Window(window.store, window.document)
    for reader in (fresh.manifest, lambda: fresh.manifest_bytes, fresh.rows, fresh.verify):
        with pytest.raises(IntegrityError, match=window.document.manifest):
            reader()


def test_a_window_document_that_is_none_is_an_integrity_error(store: DirectoryStore, window: Window) -> None:
    (folder_of(window) / "window.json").write_text(json.dumps({"id": window.document.id}))
    with pytest.raises(IntegrityError, match="WindowDocument"):
        Window.open(store, "images", window.document.id)


@pytest.mark.parametrize("most", [0, 10**6], ids=["whole shards", "one by one"])
def test_images_are_the_same_however_they_are_read(
    store: DirectoryStore, window: Window, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("components.core.windows.RANGED_READS", most)
    assert told(window, window.rows()) == {n: content(n) for n in range(25)}
    store.delete(f"datasets/images/windows/{window.document.id}/{first_shard(window.document)}")
    with pytest.raises(IntegrityError, match=r"images-00000.* is missing"):
        list(window.images(window.rows()))


# --- windows that follow others


def numbers(rows: pa.Table) -> set[int]:
    return {number_of(source) for source in rows["source"].to_pylist()}


def grouped(number: int, group: str | None, split: str) -> Row:
    return image_row(number, split=split, group=group)


@pytest.mark.parametrize("split", [None, "train", "holdout"])
def test_without_an_earlier_window_every_usable_row_is_new(window: Window, split: Split | None) -> None:
    assert Known([]).new_rows(window, split).equals(window.rows(split))


def test_the_same_bytes_under_another_group_stay_in_the_earlier_window(store: DirectoryStore, workers: Workers) -> None:
    rows = [grouped(1, None, "holdout"), grouped(2, "old", "holdout"), grouped(3, None, "train")]
    earlier = pack(store, rows, workers)
    window = pack(store, [grouped(n, "clip", "train") for n in (1, 2, 3, 4)], workers)
    assert numbers(Known([earlier]).new_rows(window, "train")) == {4}
    assert numbers(Known([earlier]).new_rows(window, None)) == {4}


def test_a_group_that_would_change_sides_is_left_out(store: DirectoryStore, workers: Workers) -> None:
    before = [grouped(1, "stays", "train"), grouped(2, "moves", "holdout"), grouped(3, None, "holdout")]
    now = [grouped(4, "stays", "train"), grouped(5, "moves", "train"), grouped(6, "new", "train")]
    earlier, window = pack(store, before, workers), pack(store, [*now, grouped(7, None, "train")], workers)
    assert numbers(Known([earlier]).new_rows(window, "train")) == {4, 6, 7}
    assert numbers(Known([earlier]).new_rows(window, None)) == {4, 6, 7}


def test_a_group_stays_where_it_stood_first(store: DirectoryStore, workers: Workers) -> None:
    first = pack(store, [grouped(1, "clip", "holdout")], workers)
    second = pack(store, [grouped(2, "clip", "train")], workers)
    third = pack(store, [grouped(3, "clip", "train"), grouped(4, "clip", "holdout")], workers)
    assert numbers(Known([first, second]).new_rows(third, None)) == {4}
    assert len(Known([first]).new_rows(second, None)) == 0


def test_rows_that_an_earlier_window_set_aside_are_new(store: DirectoryStore, workers: Workers) -> None:
    earlier = pack(store, [image_row(1, status="conflicting", split="none"), image_row(2)], workers)
    window = pack(store, [image_row(1), image_row(2), image_row(3)], workers)
    assert numbers(Known([earlier]).new_rows(window, "train")) == {1, 3}


def test_columns_that_were_asked_for_are_all_that_comes_of_new_rows(store: DirectoryStore, workers: Workers) -> None:
    earlier = pack(store, [grouped(1, "a", "train")], workers)
    window = pack(store, [grouped(1, "a", "train"), grouped(2, "a", "train"), grouped(3, "a", "holdout")], workers)
    found = Known([earlier]).new_rows(window, None, ("source", "mean"))
    assert found.to_pydict() == {"source": ["cat/002.png"], "mean": [0.25]}
    nothing = Known([earlier]).new_rows(window, "holdout", ("source", "mean"))
    assert (nothing.column_names, len(nothing)) == (["source", "mean"], 0)


def slow_new_rows(window: list[Row], split: Split | None, earlier: list[list[Row]]) -> list[str]:
    """Sources of the new rows, one row at a time."""
    seen: set[str] = set()
    labelled: set[str] = set()
    sides: dict[str, str] = {}
    for past in earlier:
        for row in past:
            if row["status"] == "ok":
                seen.add(row["sha256"])
                if row["label"] is not None:
                    labelled.add(row["sha256"])
                if row["group"]:
                    sides.setdefault(row["group"], row["split"])
    return [
        row["source"]
        for row in window
        if row["status"] == "ok"
        and split in (None, row["split"])
        and row["sha256"] not in (labelled if row["label"] is not None else seen)
        and (not row["group"] or sides.get(row["group"], row["split"]) == row["split"])
    ]


@st.composite
def deliveries(draw: st.DrawFn, groups: tuple[str | None, ...] = (None, "a", "b", "c")) -> list[Row]:
    """Rows of some of eight images, in order of digest, on any side and in any group."""
    rows: list[Row] = []
    for number in draw(st.sets(st.integers(0, 7), max_size=6)):
        status = draw(st.sampled_from(["ok", "ok", "ok", "conflicting"]))
        changes: dict[str, Any] = {
            "label": draw(st.sampled_from(["cat", None])),
            "status": status,
            "split": draw(st.sampled_from(["train", "holdout"])) if status == "ok" else "none",
            "group": draw(st.sampled_from(groups)),
        }
        rows.append(image_row(number, **changes))
    return sorted(rows, key=lambda row: row["sha256"])


@given(st.lists(deliveries(), min_size=1, max_size=4), st.sampled_from([None, "train", "holdout"]))
@settings(deadline=None, max_examples=60)
def test_new_rows_are_those_that_a_plain_search_finds(
    workers: Workers, windows: list[list[Row]], split: Split | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        packed = [pack(DirectoryStore(Path(folder) / "store"), rows, workers) for rows in windows]
        found = Known(packed[:-1]).new_rows(packed[-1], split)
    assert found["source"].to_pylist() == slow_new_rows(windows[-1], split, windows[:-1])
    assert tuple(found.column_names) == READING
    assert found.schema.equals(packed[-1].rows().schema)


def test_an_empty_group_is_none(store: DirectoryStore, workers: Workers) -> None:
    # `split_of` goes by the content where the group is empty: such images have nothing to do with each other.
    earlier = pack(store, [grouped(1, "", "holdout")], workers)
    window = pack(store, [grouped(2, "", "train"), grouped(3, "", "holdout")], workers)
    assert numbers(Known([earlier]).new_rows(window, None)) == {2, 3}


def test_the_manifest_has_a_column_for_every_fact() -> None:
    assert list(FACTS) == [field.name for field in fields(ImageFacts)]
