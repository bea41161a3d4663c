"""WebDataset tars: samples, and every way in which a tar can be hostile or broken.

Each is read in a process of its own with a bound on memory and time: what must not happen is that it never ends.
"""

from __future__ import annotations

import io
import multiprocessing
import random
import tarfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import SourceError
from components.ingest import archives
from components.ingest.batches import Delivered
from components.ingest.processes import _prepare
from components.ingest.sources import list_batches
from tests.unit.test_ingest import configured, manifest, outside, picture, taken, tar_of

SECONDS = 5.0
IMAGES = [picture(n) for n in range(4)]
SAMPLES: list[tuple[str | tarfile.TarInfo, bytes]] = [
    ("a.png", IMAGES[0]),
    ("a.cls", b"cat"),
    ("b.png", IMAGES[1]),
    ("b.cls", b"dog"),
    ("c.png", IMAGES[2]),
    ("c.cls", b"dog"),
]


def _read(path: Path, changes: dict[str, Any], answer: Connection) -> None:
    _prepare(2**30)
    try:
        config = configured(path.parent, **changes)
        answer.send([image for batch in list_batches(str(path), config) for image in batch.read(config.ingest)])
    except BaseException as error:  # noqa: BLE001  # compared by the test
        answer.send(error)


def outcome(path: Path, **changes: Any) -> Any:
    """The images of a tar, or the error that it ends with."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe(duplex=False)
    reader = context.Process(target=_read, args=(path, changes, far))
    reader.start()
    far.close()
    try:
        if not near.poll(SECONDS):
            pytest.fail(f"reading did not end within {SECONDS:.0f} s")
        return near.recv()
    except EOFError:
        return pytest.fail("the reader died")
    finally:
        near.close()
        reader.kill()
        reader.join()
        reader.close()


def images(path: Path, **changes: Any) -> list[Delivered]:
    found = outcome(path, **changes)
    assert isinstance(found, list), found
    return found


def refused(path: Path, **changes: Any) -> SourceError:
    before = outside(path.parent)
    found = outcome(path, **changes)
    assert isinstance(found, SourceError), repr(found)
    assert found.found.isprintable()
    assert path.name in found.found
    assert outside(path.parent) == before
    return found


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def raw(folder: Path, *blocks: bytes) -> Path:
    path = folder / "x.tar"
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


# Samples


def test_samples_have_label_and_group(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "x.tar",
        [
            *SAMPLES[:2],
            ("deep/er/b.PNG", IMAGES[1]),
            ("deep/er/b.json", b'{"label": "dog", "clip": 7}'),
            ("deep/er/b.txt", b"a caption"),
            ("c.jpg", picture(2, kind="JPEG")),
        ],
    )
    found = images(path, group_column="clip")
    assert [(image.name, image.label, image.group) for image in found] == [
        ("x.tar/a.png", "cat", None),
        ("x.tar/deep/er/b.PNG", "dog", "7"),
        ("x.tar/c.jpg", None, None),
    ]
    assert [image.data for image in found[:2]] == IMAGES[:2]


def test_a_label_beside_the_image_wins_over_the_description(tmp_path: Path) -> None:
    for order in (1, -1):
        sides = [("a.cls", b" cat\n"), ("a.json", b'{"label": "dog"}')][::order]
        assert images(tar_of(tmp_path / "x.tar", [SAMPLES[0], *sides]))[0].label == "cat"


@pytest.mark.parametrize("side", [("a.cls", b""), ("a.cls", b" \n"), ("a.json", b"{}"), ("a.json", b'{"label": null}')])
def test_a_sample_without_a_label_is_not_labelled_yet(tmp_path: Path, side: tuple[str, bytes]) -> None:
    assert [image.label for image in images(tar_of(tmp_path / "x.tar", [SAMPLES[0], side]))] == [None]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_all_formats_are_read(tmp_path: Path, form: int) -> None:
    name = "deep/" * 20 + "猫.png"
    found = images(tar_of(tmp_path / "x.tar", [(name, IMAGES[0]), (name[:-3] + "cls", "猫".encode())], format=form))
    assert [(image.name, image.label) for image in found] == [(f"x.tar/{name}", "猫")]


def test_folders_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "a.png").write_bytes(IMAGES[0])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "in" / "cat", "cat")
    assert [image.name for image in images(tmp_path / "x.tar")] == ["x.tar/cat/a.png"]


def test_a_tar_made_of_the_current_folder_is_read(tmp_path: Path) -> None:
    found = images(tar_of(tmp_path / "x.tar", [("./a.png", IMAGES[0]), ("./a.cls", b"cat")]))  # tar cf x.tar .
    assert [image.label for image in found] == ["cat"]


def test_labels_that_do_not_stand_beside_their_image_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [SAMPLES[0], SAMPLES[2], SAMPLES[1], SAMPLES[3]])
    found = outcome(path)
    assert isinstance(found, SourceError) or [image.label for image in found] == ["cat", "dog"]


def test_broken_images_in_a_tar_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = [("a.png", IMAGES[0]), ("b.png", b""), ("c.jpg", b"no image"), ("d.png", IMAGES[1][:100])]
    window = taken(tmp_path, tar_of(tmp_path / "in" / "x.tar", members))
    assert manifest(window, "status") == {"x.tar/a.png": "ok"} | {
        f"x.tar/{name}": "unreadable" for name in ("b.png", "c.jpg", "d.png")
    }


@pytest.mark.parametrize("members", [[], [("a.npy", b"numbers"), ("b.txt", b"text")]])
def test_a_tar_without_images_makes_no_window(tmp_path: Path, members: list[Any]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError):
        taken(tmp_path, tar_of(tmp_path / "in" / "x.tar", members))
    assert not (tmp_path / "store").exists()


# Names


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "a/../../b.png", "a/..", "a\nb.png", "a\\b.png", "a//b.png", "\x1b[2J.png"]
)
def test_names_that_lead_out_or_cannot_be_printed_are_refused(tmp_path: Path, name: str) -> None:
    assert "name" in refused(tar_of(tmp_path / "x.tar", [SAMPLES[0], (name, IMAGES[1])])).found


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    options = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    refused(tar_of(tmp_path / "x.tar", [("\udcff.png", IMAGES[0])], **options))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("l.png")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "l.png" in refused(raw(tmp_path, member("a.png", IMAGES[0]), link.tobuf(tarfile.GNU_FORMAT))).found


# What is said of images


@pytest.mark.parametrize(
    "side",
    [
        ("a.cls", b"c" * 256),
        ("a.cls", b"c" * (2**20 + 1)),
        ("a.cls", b"c" * 2**20),
        ("a.cls", b"\xff"),
        ("a.cls", b"a\nb"),
        ("a.cls", b"a\0b"),
        ("a.json", b"[]"),
        ("a.json", b'"cat"'),
        ("a.json", b"{"),
        ("a.json", b"\xff"),
        ("a.json", b"[" * 200_000),
        ("a.json", b'{"label":' * 100_000),
        ("a.json", b'{"label": ' + b"1" * 10_000 + b"}"),
        ("a.json", b'{"label": "\\ud800"}'),
        ("a.json", b'{"label": "cat", "clip": "\\ud800"}'),
    ],
    ids=lambda side: f"{side[0]}-{len(side[1])}-{side[1][:20]!r}",
)
def test_what_cannot_be_said_of_an_image_is_refused(tmp_path: Path, side: tuple[str, bytes]) -> None:
    refused(tar_of(tmp_path / "x.tar", [SAMPLES[0], side]), group_column="clip")


# Broken and hostile tars


@pytest.mark.parametrize("data", [b"", b"\0", b"no tar at all" * 1000, b"\x1f\x8b\x08" + bytes(600), b"BZh9" * 300])
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    assert "no tar" in refused(tmp_path / "x.tar").found


def test_a_tar_that_is_cut_off_is_refused_wherever_the_cut_is(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "x.tar", SAMPLES).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + 512
    wrong = []
    for cut in [*range(1, end, 97), *range(512, end + 1, 512)]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        try:
            config = configured(tmp_path)
            found = [
                image for batch in list_batches(str(tmp_path / "x.tar"), config) for image in batch.read(config.ingest)
            ]
            wrong.append((cut, len(found)))
        except SourceError:
            pass
        except Exception as error:  # noqa: BLE001  # reported
            wrong.append((cut, type(error).__name__))
    assert wrong == []


def test_garbage_between_members_is_refused(tmp_path: Path) -> None:
    refused(raw(tmp_path, member("a.png", IMAGES[0]), b"Z" * 512, member("b.png", IMAGES[1])))


def test_members_behind_a_wrong_checksum_are_not_lost_in_silence(tmp_path: Path) -> None:
    damaged = bytearray(member("b.png", IMAGES[1]))
    damaged[3] ^= 1
    refused(raw(tmp_path, member("a.png", IMAGES[0]), bytes(damaged)))


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [(name, size, tarfile.REGTYPE) for name in ("b.png", "b.cls", "b.npy") for size in (-512, -1024, -(2**40))]
    + [("b.png", -512, kind) for kind in (tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)],
)
def test_members_of_negative_size_are_refused(tmp_path: Path, name: str, size: int, kind: bytes) -> None:
    refused(raw(tmp_path, member("a.png", IMAGES[0]), header(name, size, kind), member("c.png", IMAGES[1])))


@pytest.mark.parametrize("size", ["-512", "-1536", "99999999999999999999"])
def test_sizes_that_cannot_be_in_an_extended_header_are_refused(tmp_path: Path, size: str) -> None:
    info = tarfile.TarInfo("b.png")
    info.pax_headers = {"size": size}
    refused(tar_of(tmp_path / "x.tar", [SAMPLES[0], (info, IMAGES[1])], format=tarfile.PAX_FORMAT))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_refused_before_there_is_memory_for_it(tmp_path: Path, kind: bytes) -> None:
    refused(raw(tmp_path, header("././@LongLink", 2**40, kind), bytes(2048)))


@pytest.mark.parametrize("body", [b"1" * 2**20, b"1 " * 2**19, (b"1" * 400 + b" ") * 2600])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_extended_headers_cannot_keep_the_reader_busy(tmp_path: Path, kind: bytes, body: bytes) -> None:
    refused(raw(tmp_path, member("pax", body, kind), member("a.png", IMAGES[0])))


@pytest.mark.parametrize(
    "extended",
    [
        {"GNU.sparse.map": "x"},
        {"GNU.sparse.map": "0,1,2"},
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9", "GNU.sparse.name": "../a"},
        {"path": "../a.png"},
        {"path": "a\nb.png"},
    ],
    ids=str,
)
def test_extended_headers_that_lie_are_refused(tmp_path: Path, extended: dict[str, str]) -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = extended
    refused(tar_of(tmp_path / "x.tar", [(info, b"99\n1\n" + IMAGES[0])], format=tarfile.PAX_FORMAT))


def test_many_images_of_one_sample_are_not_all_kept_in_memory(tmp_path: Path) -> None:
    side, path = bytes(32 * 2**20), tmp_path / "x.tar"
    with path.open("wb") as file:  # 1.5 GiB, sparse: clip.0001.png, clip.0002.png ... share the key "clip"
        for n in range(48):
            file.write(header(f"clip.{n:04d}.png", len(side)))
            file.seek(len(side), 1)
        file.write(bytes(1024))
    found = outcome_of_sizes(path)
    assert found == 48 or isinstance(found, SourceError), repr(found)


def _count(path: Path, answer: Connection) -> None:
    _prepare(2**30)
    try:
        config = configured(path.parent)
        answer.send(sum(1 for batch in list_batches(str(path), config) for _ in batch.read(config.ingest)))
    except BaseException as error:  # noqa: BLE001  # compared by the test
        answer.send(error)


def outcome_of_sizes(path: Path) -> Any:
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe(duplex=False)
    reader = context.Process(target=_count, args=(path, far))
    reader.start()
    try:
        return near.recv() if near.poll(SECONDS) else "did not end"
    finally:
        reader.kill()
        reader.join()


@pytest.mark.parametrize("number", range(4))
def test_tars_damaged_at_random_end_with_images_or_an_error_of_the_source(tmp_path: Path, number: int) -> None:
    dice = random.Random(number)
    whole = tar_of(tmp_path / "x.tar", SAMPLES).read_bytes()
    for _ in range(15):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            start = 512 * dice.choice(
                [n for n in range(len(data) // 512) if data[512 * n + 257 : 512 * n + 262] == b"ustar"]
            )
            data[start + dice.randrange(512)] = dice.randrange(256)
            block = data[start : start + 512]  # with a right checksum, so that the damage is looked at
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()
        (tmp_path / "x.tar").write_bytes(data)
        found = outcome(tmp_path / "x.tar")
        assert isinstance(found, (list, SourceError)), repr(found)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("batch_bytes", [1, 600, 5000])
def test_a_tar_that_is_cut_into_batches_gives_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int, batch_bytes: int
) -> None:
    path, long = tmp_path / "x.tar", "folder/" + "n" * (90 if form == tarfile.USTAR_FORMAT else 120)
    with tarfile.open(path, "w", format=form) as tar:
        for n in range(12):
            for suffix, data in ((".png", IMAGES[n % 4]), (".cls", b"cat" if n % 2 else b"dog")):
                info = tarfile.TarInfo(f"{long}{n}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    whole = images(path)
    monkeypatch.setattr(archives, "BATCH_BYTES", batch_bytes)
    assert len(list(list_batches(str(path), configured(tmp_path)))) > 1
    assert images(path) == whole
    assert len(whole) == 12
    assert {image.label for image in whole} == {"cat", "dog"}


def test_a_tar_in_parts_has_fingerprints_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "x.tar", SAMPLES)
    monkeypatch.setattr(archives, "BATCH_BYTES", 1)
    prints = [batch.fingerprint for batch in list_batches(str(path), configured(tmp_path))]
    assert len(set(prints)) == len(prints) == 3


def test_what_is_ignored_elsewhere_is_ignored_in_tars(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [*SAMPLES, ("._d.png", b"from a Mac"), ("__MACOSX/e.png", b"the same")])
    assert len(images(path)) == 3


def test_the_group_pattern_sees_the_name_of_the_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "clip-001.tar", SAMPLES)
    assert {image.group for image in images(path, group_pattern="(clip-[0-9]+)")} == {"clip-001"}
