"""Fixtures and helpers of the unit tests: a cache of their own, one thread, and windows of stand-ins for images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.core.storage import DirectoryStore, sha256_hex
from components.core.windows import FACTS, Window
from components.ingest.packing import write_window
from components.ingest.processes import Workers
from components.ingest.workers import SPOOLED

Row = dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def no_cache_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep a test that names no cache folder away from the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: networks this small wait for each other's threads longer than they compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """One worker process for all tests that pack windows."""
    with Workers(1, 4 * 2**30) as started:
        yield started


def content(number: int) -> bytes:
    """Stand-ins for images: windows never look inside. Sizes around a tar block of 512 bytes."""
    return bytes([number % 256]) * (500 + number)


def image_row(number: int, label: str | None = "cat", status: str = "ok", split: str = "train", **changes: Any) -> Row:
    """A row of `SPOOLED` but for where the bytes are; `source` tells its number."""
    data = content(number)
    seen = {"width": 8, "height": 9, "channels": 3, "mode": "RGB", "format": "PNG"}
    return {
        "sha256": sha256_hex(data),
        "label": label,
        "group": None,
        "status": status,
        "reason": None,
        "split": split,
        "bytes": len(data),
        **dict.fromkeys(FACTS),
        **seen,
        "mean": 0.25,
        "std": 0.125,
        "sharpness": 0.5,
        "source": f"{label or 'later'}/{number:03d}.png",
        **changes,
    }


def number_of(source: str) -> int:
    return int(Path(source).stem)


def spool(folder: Path, rows: Sequence[Row], files: int = 1, gap: int = 0) -> pa.Table:
    """Lay the bytes of the usable rows down as a worker does, in so many files, `gap` bytes before each image."""
    spooled = []
    ends = dict.fromkeys(range(files), 0)
    for turn, row in enumerate(rows):
        name = f"{turn % files}.bytes"
        with (folder / name).open("ab") as file:
            if row["status"] == "ok":
                file.write(bytes(gap) + content(number_of(row["source"])))
                spooled.append({**row, "spool": name, "at": ends[turn % files] + gap})
                ends[turn % files] = file.tell()
            else:
                spooled.append({**row, "spool": name, "at": ends[turn % files]})
    return pa.Table.from_pylist(spooled, schema=SPOOLED)


def pack(
    store: DirectoryStore, rows: Sequence[Row], workers: Workers, shard_bytes: int = 2**20, dataset: str = "images"
) -> Window:
    """Write a window of such rows and open it."""
    with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
        table = spool(Path(folder), rows)
        document = write_window(store, dataset, "delivery", table, Path(folder), workers, shard_bytes)
    return Window.open(store, dataset, document.id)
