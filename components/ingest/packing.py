"""Pack images into a window: deterministic tar shards and the manifest, then `window.json`, last."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from components.core.contracts import WindowDocument
from components.core.storage import ObjectStore, get_json, sha256_hex, to_json
from components.core.windows import SCHEMA, Window, to_parquet, window_id
from components.ingest.processes import Workers
from components.ingest.workers import damaged_spool

PACKING = ["sha256", "label", "format", "bytes", "spool", "at"]  # all that a shard is made of


def write_window(
    store: ObjectStore,
    dataset: str,
    source: str,
    rows: pa.Table,
    folder: Path,
    workers: Workers,
    shard_bytes: int,
    progress: Callable[[int], object] = lambda packed: None,
) -> WindowDocument:
    """Pack rows into shards and write manifest and `window.json`, the latter last. An existing window is kept as it is.

    Memory is bounded by the largest image: shards are built on disk, in order of digest. Files are named by their
    content, so writers that race (the same images under other names, another shard size) cannot mix: `window.json`
    of the first of them names its own files.

    Args:
        rows: Every delivered image, in any order, with the columns of `workers.SPOOLED`; `ok` rows are packed.
        folder: Where their bytes are, and where there is room for shards.
        workers: Pack the shards.
        shard_bytes: Size at which a shard is closed.
        progress: Called with the number of images packed since the last call.

    Raises:
        IntegrityError: An image is not what was read.
    """
    identity = window_id(rows)
    prefix = f"datasets/{dataset}/windows/{identity}"
    if existing := get_json(store, f"{prefix}/window.json", WindowDocument):
        return existing
    rows = rows.sort_by([(name, "ascending") for name in ("sha256", "label", "source")])
    usable = rows.filter(pc.equal(rows["status"], "ok"))
    shards = list(cut_shards(usable["bytes"].to_pylist(), shard_bytes))
    packing = usable.select(PACKING)
    # Taken, not sliced: a slice takes the whole table with it to the worker.
    tasks = (
        ShardTask(rows=packing.take(pa.array(range(start, end))), folder=folder, path=folder / f"{number}.tar")
        for number, (start, end) in enumerate(shards)
    )
    files: dict[str, str] = {}
    names: list[str] = []
    offsets: list[int] = []
    for number, shard in enumerate(workers.map(write_shard, tasks)):
        name = f"images-{number:05d}-{shard.digest[:12]}.tar"
        store.upload(f"{prefix}/{name}", shard.path)
        shard.path.unlink()
        files[name] = shard.digest
        names += [name] * len(shard.offsets)
        offsets += shard.offsets
        progress(len(shard.offsets))
    manifest = to_parquet(_manifest(usable, rows.filter(pc.not_equal(rows["status"], "ok")), names, offsets))
    manifest_name = f"manifest-{sha256_hex(manifest)[:12]}.parquet"
    files[manifest_name] = sha256_hex(manifest)
    store.put(f"{prefix}/{manifest_name}", manifest)
    labelled = usable.filter(pc.is_valid(usable["label"]))
    sides = Counter(labelled["split"].to_pylist())
    document = WindowDocument(
        id=identity,
        dataset=dataset,
        source=source,
        created=datetime.now(UTC),
        rows=len(rows),
        usable=len(usable),
        unlabelled=len(usable) - len(labelled),
        train_rows=sides["train"],
        holdout_rows=sides["holdout"],
        image_bytes=sum(usable["bytes"].to_pylist()),
        class_counts=_count(labelled["label"]),
        status_counts=_count(rows["status"]),
        manifest=manifest_name,
        files=files,
    )
    store.put_new(f"{prefix}/window.json", to_json(document))
    return Window.open(store, dataset, identity).document  # ours, or that of a faster writer


def cut_shards(sizes: list[int], shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into shards of at most `shard_bytes` (or of one row): first row and row behind the last of each."""
    start, total = 0, 0
    for row, size in enumerate(sizes):
        if row > start and total + size > shard_bytes:
            yield start, row
            start, total = row, 0
        total += size
    if sizes:
        yield start, len(sizes)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Rows of one shard, where their bytes are, and the file to write."""

    rows: pa.Table
    folder: Path
    path: Path


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A written shard: its file, SHA-256, and where each image's bytes begin."""

    path: Path
    digest: str
    offsets: list[int]


def write_shard(task: ShardTask) -> Shard:
    """Write one deterministic USTAR file in WebDataset naming: no time, no owner.

    Raises:
        IntegrityError: An image is not what was read.
    """
    offsets = []
    columns = (task.rows[name].to_pylist() for name in PACKING)
    with task.path.open("wb") as file:
        for digest, label, kind, size, spool, at in zip(*columns, strict=True):
            data = _spooled(task.folder / spool, at, size)
            if sha256_hex(data) != digest:
                raise damaged_spool(task.folder)
            offsets.append(_add(file, f"{digest}.{kind.lower()}", data))
            if label is not None:
                _add(file, f"{digest}.cls", label.encode())
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    with task.path.open("rb") as file:
        return Shard(path=task.path, digest=hashlib.file_digest(file, "sha256").hexdigest(), offsets=offsets)


def _spooled(path: Path, at: int, size: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, size, at)
    finally:
        os.close(descriptor)


def _add(file: io.BufferedWriter, name: str, data: bytes) -> int:
    """Append a member; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    start = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return start


def _manifest(usable: pa.Table, aside: pa.Table, shards: list[str], offsets: list[int]) -> pa.Table:
    """The packed rows, then the others, with the columns of the schema."""
    nothing = [None] * len(aside)
    rows = pa.concat_tables([usable, aside]).append_column("shard", pa.array([*shards, *nothing], pa.string()))
    rows = rows.append_column("offset", pa.array([*offsets, *nothing], pa.int64()))
    return rows.append_column("key", rows["sha256"]).select(SCHEMA.names).cast(SCHEMA)


def _count(values: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(values.to_pylist()).items()))
