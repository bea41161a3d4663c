"""What was delivered: which kind it is, which files count, which are passed over, and which mean that it is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigurationError, SourceError
from components.ingest import batches
from components.ingest.archives import TarBatch
from components.ingest.batches import FileBatch, LabelledFile
from components.ingest.sources import absolute_source, check_source, list_batches, names_window
from components.ingest.tables import RowGroupBatch
from tests.unit.test_ingest import as_csv, as_hugging_face, as_path_parquet, as_tars, class_folders, configured, picture

PNG = b"\x89PNG\r\n\x1a\n and so on"


def lay_out(folder: Path, *names: str, data: bytes = PNG) -> Path:
    return class_folders(folder, dict.fromkeys(names, data))


def files(folder: Path, **changes: Any) -> list[LabelledFile]:
    config = configured(folder, **changes)
    found: list[LabelledFile] = []
    for batch in list_batches(str(folder), config):
        assert isinstance(batch, FileBatch)
        batch.check(config.ingest)
        assert [image.name for image in batch.read(config.ingest)] == [file.name for file in batch.files]
        found += batch.files
    return found


def names(folder: Path, **changes: Any) -> list[str]:
    return [file.name for file in files(folder, **changes)]


def refused(source: Path, **changes: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        check_source(str(source), configured(source, **changes))
    return caught.value


def test_the_first_folder_is_the_label(tmp_path: Path) -> None:
    found = files(lay_out(tmp_path, "dog/2.png", "cat/1.png", "cat/deep/er/3.png"))
    assert [(file.name, file.label, file.group) for file in found] == [
        ("cat/1.png", "cat", None),
        ("cat/deep/er/3.png", "cat", None),
        ("dog/2.png", "dog", None),
    ]


def test_order_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    forwards = lay_out(tmp_path / "a", *(f"c/{n}.png" for n in range(12)))
    backwards = lay_out(tmp_path / "b", *(f"c/{n}.png" for n in reversed(range(12))))
    assert names(forwards) == names(backwards)


def test_batches_are_bounded_by_count_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path, *(f"c/{n}.png" for n in range(10)))
    config = configured(tmp_path)

    def sizes() -> list[int]:
        return [len(batch.files) for batch in list_batches(str(folder), config) if isinstance(batch, FileBatch)]

    monkeypatch.setattr(batches, "BATCH_FILES", 4)
    assert sizes() == [4, 4, 2]
    monkeypatch.setattr(batches, "BATCH_BYTES", 2 * len(PNG))
    assert sizes() == [2, 2, 2, 2, 2]
    monkeypatch.setattr(batches, "BATCH_BYTES", 1)
    assert sizes() == [1] * 10


def test_the_same_batches_have_the_same_fingerprints_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_FILES", 4)
    folder = lay_out(tmp_path, *(f"c/{n}.png" for n in range(10)))

    def prints() -> list[str]:
        return [batch.fingerprint for batch in list_batches(str(folder), configured(tmp_path))]

    before = prints()
    assert before == prints()
    assert len(set(before)) == 3
    (folder / "c" / "5.png").write_bytes(PNG + b"!")
    assert [a == b for a, b in zip(before, prints(), strict=True)] == [True, False, True]


def test_every_kind_of_source_is_told_by_its_files(tmp_path: Path) -> None:
    sources: dict[Any, Any] = {
        lay_out(tmp_path / "folder", "cat/1.png"): FileBatch,
        as_csv(tmp_path / "csv"): FileBatch,
        as_path_parquet(tmp_path / "paths"): FileBatch,
        as_tars(tmp_path / "tars"): TarBatch,
        tmp_path / "tars" / "0.tar": TarBatch,
        as_hugging_face(tmp_path / "hf"): RowGroupBatch,
        tmp_path / "hf" / "train-00000-of-00001.parquet": RowGroupBatch,
    }
    for source, kind in sources.items():
        found = list(list_batches(str(source), configured(tmp_path)))
        assert found, source
        assert all(type(batch) is kind for batch in found), source
        check_source(str(source), configured(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    assert "not there" in refused(tmp_path / f"x.{kind}").found
    assert "not there" in refused(tmp_path / "no" / "folder" / f"x.{kind}").found


def test_tars_and_something_else_in_one_folder_are_refused(tmp_path: Path) -> None:
    as_tars(tmp_path)
    error = refused(lay_out(tmp_path, "README.md"))
    assert "README.md" in error.found + error.next_command


def test_a_table_beside_class_folders_is_refused(tmp_path: Path) -> None:
    assert "labels.csv" in refused(class_folders(tmp_path, {"cat/1.png": PNG, "labels.csv": b"path,label\n"})).found


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "not there" in refused(tmp_path / "absent").found


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "delivery.zip")
    assert "is a file" in refused(tmp_path / "delivery.zip").found


@pytest.mark.parametrize("inside", [None, "cat", "cat/deeper"])
def test_a_folder_without_images_is_refused(tmp_path: Path, inside: str | None) -> None:
    if inside:
        (tmp_path / inside).mkdir(parents=True)
    assert "holds no images" in refused(tmp_path).found


def test_a_folder_of_ignored_files_only_is_refused(tmp_path: Path) -> None:
    assert "holds no images" in refused(lay_out(tmp_path, ".DS_Store", "cat/Thumbs.db")).found


def test_an_image_outside_the_class_folders_is_refused_by_name(tmp_path: Path) -> None:
    error = refused(lay_out(tmp_path, "cat/1.png", "stray.png"))
    assert "stray.png lies outside" in error.found
    assert "ingest.ignore" in error.next_command


def test_images_without_class_folders_have_no_label(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "1.png", "2.png", "_SUCCESS")
    (batch,) = list_batches(str(folder), configured(tmp_path))
    assert [(image.name, image.label) for image in batch.read(configured(tmp_path).ingest)] == [
        ("1.png", None),
        ("2.png", None),
    ]


def test_class_folders_beside_images_without_are_refused(tmp_path: Path) -> None:
    assert "cat/1.png lies in one of the class folders" in refused(lay_out(tmp_path, "a.png", "cat/1.png")).found


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/1.png")
    error = refused(lay_out(tmp_path, "cat/readme.txt", data=b"Hello there"))
    assert "readme.txt is no image" in error.found
    assert "Hello" in error.found
    assert "add 'readme.txt' to ingest.ignore" in error.next_command


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xd8\xff\xe0 JPEG",
        PNG,
        b"GIF87a",
        b"GIF89a",
        b"BM....",
        b"RIFF\x0a\n\0\0WEBP",
        b"II*\0",
        b"MM\0*",
        b"",
    ],
)
def test_a_file_that_begins_like_an_image_is_listed_even_if_it_is_broken(tmp_path: Path, head: bytes) -> None:
    assert names(lay_out(tmp_path, "cat/1", data=head)) == ["cat/1"]


@pytest.mark.parametrize("head", [b"RIFF....AVI ", b"\x89PN", b"%PDF-1.7", b"\0", b" \xff\xd8\xff", b"II+"])
def test_a_file_that_begins_like_something_else_is_refused(tmp_path: Path, head: bytes) -> None:
    assert "is no image" in refused(lay_out(tmp_path, "cat/1", data=head)).found
    assert names(lay_out(tmp_path, "cat/1", data=PNG)) == ["cat/1"]


@pytest.mark.parametrize("name", ["cat/Grüße 猫.png", "Kätzchen/1.png", "cat/it's <b>.png", "-rf/--help.png"])
def test_names_in_any_script_are_listed(tmp_path: Path, name: str) -> None:
    assert names(lay_out(tmp_path, name)) == [name]


@pytest.mark.parametrize("name", ["cat/Bildschirmfoto 9.41\u202fAM.png", "猫\u3000犬/1.png", "می\u200cخواهم/1.png"])
def test_names_that_people_and_their_cameras_give_are_listed(tmp_path: Path, name: str) -> None:
    assert names(lay_out(tmp_path, name)) == [name]


def test_ignored_names_are_passed_over_at_every_depth(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/1.png")
    junk = ["Thumbs.db", "desktop.ini", ".DS_Store", "cat/.hidden/2.png", "cat/deep/Thumbs.db", "__MACOSX/cat/1.png"]
    assert names(lay_out(tmp_path, *junk, data=b"junk")) == ["cat/1.png"]


def test_ignore_patterns_come_from_the_configuration(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/1.png", "cat/notes.txt", "old/2.png", data=PNG)
    assert names(tmp_path, ignore=("*.txt", "old")) == ["cat/1.png"]
    assert names(tmp_path, ignore=()) == ["cat/1.png", "cat/notes.txt", "old/2.png"]


@pytest.mark.parametrize("pattern", ["(", "*", "clip-[0-9]+", "(?:clip)-1"])
def test_a_bad_group_pattern_names_its_key(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ingest\.group_pattern") as caught:
        names(lay_out(tmp_path, "cat/1.png"), group_pattern=pattern)
    assert pattern in caught.value.found


@pytest.mark.parametrize("pattern", ["(", "clip-[0-9]+"])
@pytest.mark.parametrize("kind", [as_csv, as_tars, as_hugging_face])
def test_a_bad_group_pattern_is_found_in_every_kind_of_source(tmp_path: Path, kind: Any, pattern: str) -> None:
    source, config = kind(tmp_path / "delivery"), configured(tmp_path, group_pattern=pattern)
    with pytest.raises(ConfigurationError, match=r"ingest\.group_pattern"):  # noqa: PT012
        for batch in list_batches(str(source), config):
            list(batch.read(config.ingest))


def test_groups_are_what_the_first_group_of_the_pattern_matches(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/clip-07/1.png", "cat/clip-07_2.png", "dog/other.png")
    assert [file.group for file in files(tmp_path, group_pattern=r"(clip-\d+)([/_])")] == ["clip-07", "clip-07", None]


def test_the_group_pattern_sees_the_path_below_the_source_only(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "clip-9", "cat/1.png")
    assert files(folder, group_pattern=r"(clip-\d)")[0].group is None


def test_links_to_images_are_followed(tmp_path: Path) -> None:
    cache = lay_out(tmp_path / "cache", "cat/2.png")
    folder = lay_out(tmp_path / "delivery", "cat/1.png")
    (folder / "cat" / "file.png").symlink_to(cache / "cat" / "2.png")
    assert names(folder) == ["cat/1.png", "cat/file.png"]


def test_what_is_neither_file_nor_folder_is_passed_over(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "cat/1.png")
    os.mkfifo(folder / "cat" / "pipe.png")  # opening it would wait for ever
    assert names(folder) == ["cat/1.png"]


def test_a_file_that_vanishes_between_listing_and_reading_is_an_error_of_the_source(tmp_path: Path) -> None:
    folder, config = lay_out(tmp_path, "cat/1.png", "cat/2.png"), configured(tmp_path)
    (batch,) = list_batches(str(folder), config)
    (folder / "cat" / "2.png").unlink()
    with pytest.raises(SourceError, match=r"cat/2\.png cannot be read"):
        list(batch.read(config.ingest))


def test_a_window_is_named_by_its_id_only() -> None:
    assert names_window("0123456789abcdef" * 2)
    for source in ("0123456789abcdef", "0123456789ABCDEF" * 2, "0123456789abcdef" * 2 + "\n", "./" + "0" * 32):
        assert not names_window(source), source


def test_a_source_means_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("a/b") == str(tmp_path / "a" / "b")
    for source in ("s3://bucket/x", "0" * 32, "/a/b.csv"):
        assert absolute_source(source) == source


def test_a_relative_table_beside_us_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, {"1.png": picture(1), "t.csv": b"path,label\n1.png,cat\n"})
    monkeypatch.chdir(tmp_path)
    (batch,) = list_batches("t.csv", configured(tmp_path))
    assert [file.label for file in batch.files] == ["cat"]  # type: ignore[attr-defined]
