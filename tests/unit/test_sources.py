"""What was delivered: which files count, which are passed over, and which mean that the folder is the wrong one."""

import os
from pathlib import Path

import pytest

from components.core.config import IngestConfig
from components.core.errors import ConfigurationError, SourceError
from components.ingest.sources import list_images

PNG = b"\x89PNG\r\n\x1a\n and so on"
CONFIG = IngestConfig()


def lay_out(folder: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def names(folder: Path, config: IngestConfig = CONFIG) -> list[str]:
    return [image.name for image in list_images(folder, config)]


def refused(folder: Path, config: IngestConfig = CONFIG) -> SourceError:
    with pytest.raises(SourceError) as caught:
        list_images(folder, config)
    return caught.value


def test_the_first_folder_is_the_label(tmp_path: Path) -> None:
    images = list_images(lay_out(tmp_path, "dog/2.png", "cat/1.png", "cat/deep/er/3.png"), CONFIG)
    assert [(image.name, image.label) for image in images] == [
        ("cat/1.png", "cat"),
        ("cat/deep/er/3.png", "cat"),
        ("dog/2.png", "dog"),
    ]
    assert all(image.path == tmp_path / image.name for image in images)
    assert all(image.group is None for image in images)


def test_order_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    forwards = lay_out(tmp_path / "a", *(f"c/{n}.png" for n in range(12)))
    backwards = lay_out(tmp_path / "b", *(f"c/{n}.png" for n in reversed(range(12))))
    assert names(forwards) == names(backwards)


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


@pytest.mark.parametrize("name", ["cat/a\nb.png", "cat/a\tb.png", "c\rat/1.png", "cat/\x1b[31m.png"])
def test_a_name_with_control_characters_is_refused_on_one_line(tmp_path: Path, name: str) -> None:
    error = refused(lay_out(tmp_path, name))
    assert "not printable" in error.found
    assert error.found.isprintable()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(PNG)
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    assert "not printable" in refused(tmp_path).found


@pytest.mark.parametrize("name", ["cat/Grüße 猫.png", "Kätzchen/1.png", "cat/it's <b>.png"])
def test_names_in_any_script_are_listed(tmp_path: Path, name: str) -> None:
    assert names(lay_out(tmp_path, name)) == [name]


def test_ignored_names_are_passed_over_at_every_depth(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/1.png")
    junk = ["Thumbs.db", "desktop.ini", ".DS_Store", "cat/.hidden/2.png", "cat/deep/Thumbs.db", "__MACOSX/cat/1.png"]
    assert names(lay_out(tmp_path, *junk, data=b"junk")) == ["cat/1.png"]


def test_ignore_patterns_come_from_the_configuration(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/1.png", "cat/notes.txt", "old/2.png", data=PNG)
    assert names(tmp_path, IngestConfig(ignore=("*.txt", "old"))) == ["cat/1.png"]
    assert names(tmp_path, IngestConfig(ignore=())) == ["cat/1.png", "cat/notes.txt", "old/2.png"]


@pytest.mark.parametrize("pattern", ["(", "*", "clip-[0-9]+", "(?:clip)-1"])
def test_a_bad_group_pattern_names_its_key(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ingest\.group_pattern") as caught:
        list_images(lay_out(tmp_path, "cat/1.png"), IngestConfig(group_pattern=pattern))
    assert pattern in caught.value.found


def test_groups_are_what_the_first_group_of_the_pattern_matches(tmp_path: Path) -> None:
    lay_out(tmp_path, "cat/clip-07/1.png", "cat/clip-07_2.png", "dog/other.png")
    images = list_images(tmp_path, IngestConfig(group_pattern=r"(clip-\d+)([/_])"))
    assert [image.group for image in images] == ["clip-07", "clip-07", None]


def test_the_group_pattern_sees_the_path_below_the_source_only(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "clip-9", "cat/1.png")
    assert list_images(folder, IngestConfig(group_pattern=r"(clip-\d)"))[0].group is None


def test_links_to_images_are_followed(tmp_path: Path) -> None:
    cache = lay_out(tmp_path / "cache", "cat/2.png")
    folder = lay_out(tmp_path / "delivery", "cat/1.png")
    (folder / "cat" / "file.png").symlink_to(cache / "cat" / "2.png")
    assert names(folder) == ["cat/1.png", "cat/file.png"]


@pytest.mark.parametrize("target", ["nowhere", "..", "link"])
def test_link_that_leads_to_no_file_is_refused_by_name(tmp_path: Path, target: str) -> None:
    folder = lay_out(tmp_path, "cat/1.png")
    (folder / "cat" / "link").symlink_to(target)
    with pytest.raises(SourceError, match="link that leads to no file"):
        names(folder)


def test_what_is_neither_file_nor_folder_is_passed_over(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "cat/1.png")
    os.mkfifo(folder / "cat" / "pipe.png")  # opening it would wait for ever
    assert names(folder) == ["cat/1.png"]
