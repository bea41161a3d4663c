"""Tables: CSV and Parquet of paths and labels, Parquet with images inside, and how each can be wrong."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.errors import RetrainError, SourceError
from components.ingest import tables
from components.ingest.batches import Delivered
from components.ingest.sources import list_batches
from tests.unit.test_ingest import class_folders, configured, outside, picture, taken

FILES = {f"{n}.png": picture(n) for n in range(3)} | {"deep/3.png": picture(3)}


def read(path: Path, **changes: Any) -> list[Delivered]:
    config = configured(path.parent, **changes)
    return [image for batch in list_batches(str(path), config) for image in batch.read(config.ingest)]


def labels(path: Path, **changes: Any) -> list[str | None]:
    return [image.label for image in read(path, **changes)]


def refused(path: Path, **changes: Any) -> SourceError:
    before = outside(path.parent)
    with pytest.raises(SourceError) as caught:
        read(path, **changes)
    assert outside(path.parent) == before
    assert str(path) in str(caught.value) or str(path.parent) in str(caught.value)
    return caught.value


def csv(folder: Path, text: str | bytes) -> Path:
    class_folders(folder, {**FILES, "t.csv": text if isinstance(text, bytes) else text.encode()})
    return folder / "t.csv"


def parquet(folder: Path, columns: Any, *, features: Any = None, **options: Any) -> Path:
    class_folders(folder, FILES)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "t.parquet", **options)
    return folder / "t.parquet"


# Paths and labels


def test_rows_name_files_beside_and_below_the_table(tmp_path: Path) -> None:
    found = read(csv(tmp_path, "path,label,other\n1.png, cat ,x\ndeep/3.png,dog,y\n"))
    assert [(image.name, image.label, image.data) for image in found] == [
        ("1.png", "cat", FILES["1.png"]),
        ("deep/3.png", "dog", FILES["deep/3.png"]),
    ]


def test_a_table_in_a_folder_of_tables_names_files_beside_itself(tmp_path: Path) -> None:
    csv(tmp_path / "a" / "part", "path,label\n1.png,cat\n")
    (tmp_path / "a" / "part").rename(tmp_path / "part")
    (tmp_path / "only").mkdir()
    config = configured(tmp_path, ignore=("*.png", "a", "only", "deep"))
    (batch,) = list_batches(str(tmp_path), config)
    assert [image.name for image in batch.read(config.ingest)] == ["part/1.png"]


@pytest.mark.parametrize("cell", ["", '""', " ", '" "'])
def test_an_empty_label_is_not_labelled_yet(tmp_path: Path, cell: str) -> None:
    assert labels(csv(tmp_path, f"path,label\n1.png,{cell}\n2.png,cat\n")) == [None, "cat"]


@pytest.mark.parametrize("label", ["NA", "N/A", "null", "NULL", "nan", "NaN", "None", "-1", "0", "true", "1e5", "#N/A"])
def test_labels_that_look_like_something_else_are_labels(tmp_path: Path, label: str) -> None:
    assert labels(csv(tmp_path, f"path,label\n1.png,{label}\n")) == [label]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = csv(tmp_path, "file,class,clip\n1.png,cat,a\n2.png,dog,\n")
    found = read(path, path_column="file", label_column="class", group_column="clip", group_pattern=r"^(\d)")
    assert [(image.label, image.group) for image in found] == [("cat", "a"), ("dog", "2")]


@pytest.mark.parametrize("text", ["path\n1.png\n", "label\ncat\n", "path;label\n1.png;cat\n", "a,b\n1,2\n"])
def test_a_missing_column_is_named(tmp_path: Path, text: str) -> None:
    error = refused(csv(tmp_path, text))
    assert "path, label" in error.expected
    assert "ingest.path_column" in error.next_command


def test_a_missing_group_column_is_named(tmp_path: Path) -> None:
    assert "'clip'" in refused(csv(tmp_path, "path,label\n1.png,cat\n"), group_column="clip").found
    rows = {"image": [picture(1)], "label": ["cat"]}
    assert "'clip'" in refused(parquet(tmp_path, rows), group_column="clip").found


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x.png",
        "deep/../../x.png",
        "a\\b.png",
        "",
        "missing.png",
        "deep",
        "1.png/2.png",
        "a\x00.png",
        "a" * 300,
        "a/" * 3000 + "b.png",
        "deep//3.png",
        '"a\nb.png"',
    ],
    ids=lambda path: path[:20],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_paths_that_lead_nowhere_or_out_of_the_folder_are_refused(tmp_path: Path, path: str, kind: str) -> None:
    folder = tmp_path / "delivery"
    (tmp_path / "x.png").write_bytes(picture(9))
    if kind == "csv":
        refused(csv(folder, f"path,label\n0.png,cat\n{path},cat\n"))
    else:
        refused(parquet(folder, {"path": ["0.png", path], "label": ["cat", "cat"]}))


def test_a_path_that_is_missing_is_told_as_such(tmp_path: Path) -> None:
    assert "None" not in refused(csv(tmp_path, "path,label\n,cat\n")).found
    assert "None" not in refused(parquet(tmp_path, {"path": pa.array([None], pa.string()), "label": ["a"]})).found


def test_a_path_as_find_prints_it_is_read(tmp_path: Path) -> None:
    assert labels(csv(tmp_path, "path,label\n./1.png,cat\n")) == ["cat"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"path,label",
        b"path,label\n",
        b"path,label\n1.png\n",
        b"path,label\n1.png,cat,more\n",
        b"path,label\n1.png,caf\xe9\n",
        b"path,label,\xe9\n1.png,cat,1\n",
        b"path,label\n\xff.png,cat\n",
        b"path,label\n1.png,c\0t\n",
        b"path,label\n1.png," + b"c" * 256 + b"\n",
        b"path,label\n1.png," + b"c" * 3_000_000 + b"\n",
        b'path,label\n1.png,"cat\n' + b"2.png,dog\n" * 200_000,
        b"path,label,label\n1.png,cat,dog\n",
        b"path,path,label\n1.png,2.png,dog\n",
        "path,label\n1.png,cat\n".encode("utf-16"),
        random.Random(0).randbytes(5000),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_a_broken_csv_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(csv(tmp_path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfpath,label\n1.png,cat\n",
        b"path,label\r\n1.png,cat\r\n",
        b"label,path\ncat,1.png",
        b"path,label,z,z\n1.png,cat,1,2\n",
        b"path,label,note\n1.png,cat,\xe9\n",
        b'path,label,note\n1.png,cat,"two\nlines"\n',
        b'"path","label"\n"1.png","cat"\n',
    ],
)
def test_csv_of_all_habits_is_read(tmp_path: Path, data: bytes) -> None:
    assert labels(csv(tmp_path, data)) == ["cat"]


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    rows = f"1.png,cat,1,{'x' * 2000}\n" * 600  # more than a block: types are guessed by the first
    assert len(labels(csv(tmp_path, f"path,label,note,text\n{rows}2.png,dog,x,y\n"))) == 601


def test_a_table_of_many_rows_is_a_stream(tmp_path: Path) -> None:
    path = csv(tmp_path, "path,label\n" + "1.png,cat\n" * 3000 + "nowhere.png,cat\n")
    batches = list_batches(str(path), configured(tmp_path))
    next(batches)  # the first are there before the error at the end is met
    with pytest.raises(SourceError, match=r"nowhere\.png"):
        list(batches)


def test_a_path_under_two_labels_is_conflicting(tmp_path: Path) -> None:
    path = csv(tmp_path / "in", "path,label\n1.png,cat\n1.png,dog\n2.png,dog\n2.png,dog\n")
    assert taken(tmp_path, path).document.status_counts == {"conflicting": 2, "duplicate": 1, "ok": 1}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_of_paths_is_read(tmp_path: Path, kind: Any) -> None:
    rows = {"path": pa.array(["1.png", "2.png", "deep/3.png"], kind), "label": pa.array(["a", None, ""], kind)}
    assert labels(parquet(tmp_path, rows)) == ["a", None, None]


def test_labels_of_parquet_may_be_numbers_and_categories(tmp_path: Path) -> None:
    paths = ["1.png", "2.png"]
    assert labels(parquet(tmp_path, {"path": paths, "label": pa.array([3, None], pa.int64())})) == ["3", None]
    category = pa.array(["a", None]).dictionary_encode()
    assert labels(parquet(tmp_path, {"path": paths, "label": category})) == ["a", None]


def test_a_label_that_is_not_a_number_is_not_a_class(tmp_path: Path) -> None:
    rows = {"path": ["1.png", "2.png"], "label": [1.0, float("nan")]}
    assert labels(parquet(tmp_path, rows))[1] is None


@pytest.mark.parametrize("value", [[b"cat"], [["cat"]], [{"a": 1}]])
def test_labels_that_are_no_text_are_refused_or_read_as_text(tmp_path: Path, value: Any) -> None:
    with contextlib.suppress(SourceError):
        assert labels(parquet(tmp_path, {"path": ["1.png"], "label": value})) == ["cat"]


INVALID = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 1)), pa.py_buffer(b"\xff")])


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    refused(parquet(tmp_path, {"path": ["1.png"], "label": INVALID}))
    refused(parquet(tmp_path, {"path": INVALID, "label": ["cat"]}))
    refused(parquet(tmp_path, {"image": [picture(1)], "label": INVALID}))
    refused(parquet(tmp_path, {"image": [picture(1)], "label": ["cat"], "clip": INVALID}), group_column="clip")


def test_columns_that_stand_twice_are_refused(tmp_path: Path) -> None:
    for name, first in (("path", "1.png"), ("image", picture(1))):
        columns = [pa.array([first]), pa.array(["cat"]), pa.array(["dog"])]
        refused(parquet(tmp_path, pa.Table.from_arrays(columns, names=[name, "label", "label"])))


# Images inside


@pytest.mark.parametrize("kind", ["struct", "bytes", "large bytes"])
def test_images_inside_are_read(tmp_path: Path, kind: str) -> None:
    data = [picture(n) for n in range(5)]
    column: Any = [{"bytes": one, "path": None} for one in data]
    if kind != "struct":
        column = pa.array(data, pa.binary() if kind == "bytes" else pa.large_binary())
    path = parquet(tmp_path, {"image": column, "label": list("abcde")}, row_group_size=2)
    found = read(path)
    assert [(image.data, image.label) for image in found] == list(zip(data, "abcde", strict=True))
    assert len({image.name for image in found}) == 5
    assert all(image.name.startswith("t.parquet/") for image in found)


NAMED = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def test_numbers_are_classes_where_the_metadata_say_so(tmp_path: Path) -> None:
    rows = {"image": [picture(n) for n in range(4)], "label": [1, 0, -1, None]}
    assert labels(parquet(tmp_path, rows, features=NAMED)) == ["dog", "cat", None, None]
    assert labels(parquet(tmp_path, rows)) == ["1", "0", "-1", None]


@pytest.mark.parametrize("label", [2, 99, -2])
def test_a_number_without_a_class_is_refused(tmp_path: Path, label: int) -> None:
    error = refused(parquet(tmp_path, {"image": [picture(1)], "label": [label]}, features=NAMED))
    assert (str(label) in error.found, error.expected) == (True, "0 to 1")


@pytest.mark.parametrize("metadata", [b"", b"[]", b"{", b"\xff", b'{"info": null}', b"[" * 200_000, b'"x"'])
def test_metadata_that_say_nothing_are_passed_over(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [picture(1)], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    with contextlib.suppress(SourceError):
        assert labels(parquet(tmp_path, table)) == ["1"]


def test_a_data_set_without_labels_is_read(tmp_path: Path) -> None:
    assert labels(parquet(tmp_path, {"image": [picture(1)]})) == [None]


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "1.png"}, "1.png", 7])
def test_a_cell_without_an_image_is_refused(tmp_path: Path, cell: Any) -> None:
    assert "without bytes" in refused(parquet(tmp_path, {"image": [cell], "label": ["cat"]})).found


def test_broken_images_inside_are_counted(tmp_path: Path) -> None:
    rows = {"image": [b"", b"no image", picture(1)[:60], picture(2)], "label": list("abcd")}
    counts = taken(tmp_path, parquet(tmp_path / "in", rows)).document.status_counts
    assert counts == {"ok": 1, "unreadable": 3}


def test_an_image_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"image": [picture(1), bytes(5000)], "label": ["a", "b"]})
    assert "5000 bytes" in refused(path, max_image_bytes=4999).found


def test_a_row_group_over_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_BYTES", 2**20)
    path = parquet(tmp_path, {"image": [bytes(2**21)], "label": ["a"]}, compression="zstd")
    assert path.stat().st_size < 2**16
    assert "row group 0" in refused(path).found


def test_parquet_without_rows_makes_no_window(tmp_path: Path) -> None:
    path = parquet(tmp_path / "in", pa.table({"image": [picture(1)], "label": ["a"]}).slice(0, 0))
    with pytest.raises(SourceError, match="no images"):
        taken(tmp_path, path)


TABLES: dict[str, Any] = {
    "paths": {"path": list(FILES), "label": list("abca")},
    "images": {"image": [{"bytes": data, "path": name} for name, data in FILES.items()], "label": list("abca")},
}


@pytest.mark.parametrize("kind", TABLES)
def test_parquet_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    path = parquet(tmp_path, TABLES[kind])
    whole = path.read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:cut])
        refused(path)


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("kind", TABLES)
def test_parquet_damaged_at_random_is_read_or_refused(tmp_path: Path, kind: str, checksums: bool) -> None:
    path, dice, wrong = parquet(tmp_path, TABLES[kind], write_page_checksum=checksums), random.Random(0), []
    whole = path.read_bytes()
    for _ in range(150):
        data, at = bytearray(whole), dice.randrange(len(whole))
        data[at] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            read(path)
        except RetrainError:
            pass
        except Exception as error:  # noqa: BLE001  # reported
            wrong.append((at, repr(error)[:100]))
    assert wrong == []


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"text"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    assert "cannot be read" in refused(tmp_path / "t.parquet").found
