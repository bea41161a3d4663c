"""Workers: a stream through processes in order, crashes that cost one image, and spools that are gone on with."""

from __future__ import annotations

import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from components.core.config import IngestConfig
from components.core.errors import RetrainError, SourceError
from components.core.storage import sha256_hex
from components.ingest import batches, workers
from components.ingest.processes import Workers
from components.ingest.workers import MOST_CRASHES, spool_folder
from tests.unit.test_ingest import class_folders, manifest, picture, taken, window_files

MEMORY = 2**31
LOOK = workers.inspect_image


def double(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return 2 * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise SourceError("three", expected="another number", next_command="count again")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def die_by_memory(number: int) -> int:
    return len(bytearray(2**34)) if number == 3 else number


def deadly(monkeypatch: pytest.MonkeyPatch, *seeds: int) -> None:
    """Let workers die at certain images."""
    digests = {sha256_hex(picture(seed)) for seed in seeds}

    def look(data: bytes, max_pixels: int) -> Any:
        if sha256_hex(data) in digests:
            os._exit(1)
        return LOOK(data, max_pixels)

    monkeypatch.setattr(workers, "inspect_image", look)


def delivery(folder: Path, count: int) -> Path:
    return class_folders(folder, {f"{'cat' if n % 2 else 'dog'}/{n:03d}.png": picture(n) for n in range(count)})


# Processes


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order(count: int) -> None:
    with Workers(count, MEMORY) as pool:
        assert list(pool.map(double, range(50))) == [2 * n for n in range(50)]
        assert list(pool.map(double, [])) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken_so_far = []
    with Workers(2, MEMORY) as pool:
        results = pool.map(double, (taken_so_far.append(n) or n for n in range(1000)))
        assert next(results) == 0
        assert len(taken_so_far) <= 4


def test_errors_of_a_worker_keep_what_they_say() -> None:
    with Workers(2, MEMORY) as pool, pytest.raises(SourceError, match="three") as caught:
        list(pool.map(fail_at_three, range(9)))
    assert (caught.value.expected, caught.value.next_command) == ("another number", "count again")


def test_a_worker_that_dies_is_an_error_where_nobody_knows_better() -> None:
    with Workers(2, MEMORY) as pool, pytest.raises(BrokenProcessPool):
        list(pool.map(die_at_three, range(9)))


def test_a_worker_that_dies_costs_no_other_item() -> None:
    with Workers(2, MEMORY) as pool:
        assert list(pool.map(die_at_three, range(9), lambda number: -number)) == [0, 1, 2, -3, 4, 5, 6, 7, 8]


def test_memory_of_a_worker_is_bounded() -> None:
    with Workers(1, MEMORY) as pool, pytest.raises(MemoryError):
        list(pool.map(die_by_memory, range(9)))


# Crashes


def test_an_image_that_kills_a_worker_is_counted_and_others_are_unharmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_FILES", 8)
    deadly(monkeypatch, 0, 7, 8, 21, 22, 39)
    window = taken(tmp_path, delivery(tmp_path / "delivery", 40))
    assert window.document.status_counts == {"ok": 34, "unreadable": 6}
    reasons = {name: reason for name, reason in manifest(window, "reason").items() if reason}
    assert {name[-7:-4] for name in reasons} == {"000", "007", "008", "021", "022", "039"}
    assert set(reasons.values()) == {"decoding crashed"}
    window.verify()


def test_the_same_crashes_are_the_same_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly(monkeypatch, 3, 4)
    folder = delivery(tmp_path / "delivery", 20)
    for name, count in (("a", 1), ("b", 3)):
        taken(tmp_path / name, folder, workers=count)
    assert window_files(tmp_path / "a") == window_files(tmp_path / "b")


def test_too_many_crashes_are_no_fault_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly(monkeypatch, *range(MOST_CRASHES + 5))
    with pytest.raises(SourceError, match=f"{MOST_CRASHES} images of one batch") as caught:
        taken(tmp_path, delivery(tmp_path / "delivery", 40))
    assert "ingest.max_pixels" in caught.value.next_command
    assert not (tmp_path / "store").exists()


def test_a_worker_that_dies_while_it_reads_the_source_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.FileBatch, "read", lambda batch, config: os._exit(1))
    with pytest.raises(SourceError):
        taken(tmp_path, delivery(tmp_path / "delivery", 4))


# Spools


def test_another_configuration_or_source_gets_another_spool(tmp_path: Path) -> None:
    found = set()
    for source in ("/a", "/b"):
        for config in (IngestConfig(), IngestConfig(max_pixels=9), IngestConfig(group_pattern="(a)")):
            with spool_folder(tmp_path, source, config) as folder:
                assert folder.is_dir()
                found.add(folder.name)
            assert not folder.exists()
    assert len(found) == 6


def test_a_spool_is_kept_when_something_fails_and_found_again(tmp_path: Path) -> None:
    def fail() -> None:
        with spool_folder(tmp_path, "/a", IngestConfig()) as folder:
            (folder / "half").write_bytes(b"done")
            raise SourceError("a", expected="b", next_command="c")

    with pytest.raises(SourceError):
        fail()
    with spool_folder(tmp_path, "/a", IngestConfig()) as folder:
        assert (folder / "half").read_bytes() == b"done"


def test_spools_that_nobody_came_back_to_are_removed(tmp_path: Path) -> None:
    for name, days in (("old", 8), ("young", 6)):
        (tmp_path / "spool" / name).mkdir(parents=True)
        (tmp_path / "spool" / name / "x.bytes").write_bytes(b"x")
        (tmp_path / "spool" / f"{name}.lock").touch()
        os.utime(tmp_path / "spool" / name, (time.time() - days * 86400,) * 2)
    with spool_folder(tmp_path, "/a", IngestConfig()):
        assert [(tmp_path / "spool" / name).exists() for name in ("old", "young")] == [False, True]


def test_a_spool_that_is_in_use_stays_however_old_it_is(tmp_path: Path) -> None:
    with spool_folder(tmp_path, "/a", IngestConfig()) as folder:
        os.utime(folder, (time.time() - 30 * 86400,) * 2)
        with spool_folder(tmp_path, "/b", IngestConfig()):
            assert folder.exists()


def test_another_number_of_workers_goes_on_with_the_same_spool(tmp_path: Path) -> None:
    with spool_folder(tmp_path, "/a", IngestConfig(workers=1)) as one:
        pass
    with spool_folder(tmp_path, "/a", IngestConfig(workers=2, shard_bytes=5)) as other:
        assert one == other


def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A delivery and its spool, where all batches are done but the last, which an error ended."""
    folder = delivery(tmp_path / "delivery", 20)
    broken = class_folders(folder, {"zebra/readme": b"no image"}) / "zebra" / "readme"
    monkeypatch.setattr(batches, "BATCH_FILES", 5)
    with pytest.raises(SourceError):
        taken(tmp_path, folder)
    broken.write_bytes(picture(99))
    (spool,) = (path for path in (tmp_path / "cache" / "spool").iterdir() if path.is_dir())
    assert len(list(spool.glob("*.rows"))) == 4
    return folder, spool


def test_a_delivery_that_was_mended_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, spool = half_done(tmp_path, monkeypatch)
    deadly(monkeypatch, *range(20))  # looking at one of these again would be noticed
    window = taken(tmp_path, folder)
    assert window.document.status_counts == {"ok": 21}
    assert not spool.exists()


@pytest.mark.parametrize("damage", ["rows cut", "rows empty", "bytes gone", "bytes cut"])
def test_a_damaged_spool_costs_work_or_ends_with_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder, spool = half_done(tmp_path, monkeypatch)
    suffix, _, what = damage.partition(" ")
    path = sorted(spool.glob(f"*.{suffix}"))[0]
    if what == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if what == "cut" else 0)
    try:
        assert taken(tmp_path, folder).document.status_counts == {"ok": 21}
    except RetrainError as error:
        assert str(spool) in str(error)  # noqa: PT017  # either is right
