"""Windows: immutable, digest-named sets of labelled images in the store, and how to read them.

A window is a Parquet manifest (one row an image) and tar shards in WebDataset naming that hold the image bytes
unchanged. Every byte read is checked against the digest in the manifest. Not covered: where images come from
(`ingest`) and decoding for training (`datasets`).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.contracts import WindowDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.storage import KeyMissing, ObjectStore, get_json, sha256_hex, to_json

RANGED_READS = 64  # up to this many images of a shard are read one by one, more by reading the shard
Status = Literal["ok", "unreadable", "duplicate", "conflicting"]
Split = Literal["train", "holdout", "none"]

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # name inside the shard, without extension: the SHA-256
        ("sha256", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("status", pa.string()),  # ok | unreadable | duplicate | conflicting; only ok rows are packed
        ("split", pa.string()),  # train | holdout | none
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int8()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("mean", pa.float32()),  # of grey values in [0, 1]
        ("std", pa.float32()),
        ("sharpness", pa.float32()),  # variance of the Laplacian of the grey image
        ("source", pa.string()),  # path below the source
        ("shard", pa.string()),
        ("offset", pa.int64()),  # of the image bytes in the shard
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image of a window, as the manifest has it. Sizes in pixels and bytes, statistics of grey values in [0, 1]."""

    sha256: str
    label: str
    group: str | None
    status: Status
    split: Split
    width: int | None
    height: int | None
    channels: int | None
    format: str | None
    bytes: int
    mean: float | None
    std: float | None
    sharpness: float | None
    source: str
    shard: str | None = None
    offset: int | None = None


def split_of(sha256: str, group: str | None, holdout_fraction: float) -> Split:
    """Side of the split by content, so that no image ever moves: equal bytes, or one group, are on one side always.

    Args:
        sha256: Digest of the image bytes.
        group: What makes images dependent, if anything does.
        holdout_fraction: Expected share of the holdout, in (0, 1).
    """
    position = int(sha256_hex((group or sha256).encode())[:13], 16) / 16**13
    return "holdout" if position < holdout_fraction else "train"


def window_id(rows: Iterable[ImageRow]) -> str:
    """Digest of what the images are, whatever their order, their packing or the Parquet writer: 32 hex digits."""
    identity = sorted(json.dumps([r.sha256, r.label, r.group, r.status, r.split]) for r in rows)
    return sha256_hex("\n".join(identity).encode())[:32]


def write_window(
    store: ObjectStore,
    dataset: str,
    source: str,
    rows: list[ImageRow],
    read_image: Callable[[ImageRow], bytes],
    *,
    shard_bytes: int,
    progress: Callable[[int], object] = lambda packed: None,
) -> WindowDocument:
    """Pack rows into shards and write manifest and `window.json`, the latter last. An existing window is kept as it is.

    Memory is bounded by the largest image: shards are built on disk, in order of digest. Files are named by their
    content, so writers that race (the same images under other names, another shard size) cannot mix: `window.json`
    of the first of them names its own files.

    Args:
        rows: Every delivered image, in any order; `ok` rows are packed.
        read_image: Bytes of a row's image; must still have the row's digest.
        shard_bytes: Size at which a shard is closed.
        progress: Called with the number of images packed since the last call.

    Raises:
        IntegrityError: An image changed while it was being packed.
    """
    identity = window_id(rows)
    prefix = f"datasets/{dataset}/windows/{identity}"
    if existing := get_json(store, f"{prefix}/window.json", WindowDocument):
        return existing
    rows = sorted(rows, key=lambda r: (r.sha256, r.label, r.source))
    packed: list[ImageRow] = []
    files: dict[str, str] = {}
    with TemporaryDirectory(prefix="retrain-pack-") as folder:
        usable = [r for r in rows if r.status == "ok"]
        for number, batch in enumerate(_shards(usable, shard_bytes)):
            path = Path(folder, "shard.tar")
            members = _write_shard(path, batch, read_image, progress)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"images-{number:05d}-{digest[:12]}.tar"
            files[name] = digest
            store.upload(f"{prefix}/{name}", path)
            packed += [replace(row, shard=name) for row in members]
    packed += [r for r in rows if r.status != "ok"]
    manifest = _to_parquet(packed)
    manifest_name = f"manifest-{sha256_hex(manifest)[:12]}.parquet"
    files[manifest_name] = sha256_hex(manifest)
    store.put(f"{prefix}/{manifest_name}", manifest)
    document = WindowDocument(
        id=identity,
        dataset=dataset,
        source=source,
        created=datetime.now(UTC),
        rows=len(rows),
        usable=len(usable),
        train_rows=sum(r.split == "train" for r in usable),
        holdout_rows=sum(r.split == "holdout" for r in usable),
        image_bytes=sum(r.bytes for r in usable),
        class_counts=_count(r.label for r in usable),
        status_counts=_count(r.status for r in rows),
        manifest=manifest_name,
        files=files,
    )
    store.put_new(f"{prefix}/window.json", to_json(document))
    return Window.open(store, dataset, identity).document  # ours, or that of a faster writer


class Window:
    """A window in the store."""

    def __init__(self, store: ObjectStore, document: WindowDocument) -> None:
        self.store, self.document = store, document

    @classmethod
    def open(cls, store: ObjectStore, dataset: str, identity: str) -> Window:
        """Find a window.

        Raises:
            ConfigurationError: There is no such window.
        """
        document = get_json(store, f"datasets/{dataset}/windows/{identity}/window.json", WindowDocument)
        if document is None:
            raise ConfigurationError(
                f"no window {identity} of {dataset} in {store.uri}",
                expected="the id of an ingested window",
                next_command="retrain ingest FOLDER",
            )
        return cls(store, document)

    def manifest(self) -> list[ImageRow]:
        """All rows, the packed ones first, in order of digest.

        Raises:
            IntegrityError: The manifest is not the one that was written.
        """
        data = self.manifest_bytes()
        # ParquetFile, not read_table: that imports pyarrow.dataset and with it pandas, a second in every pod.
        columns = pq.ParquetFile(io.BytesIO(data)).read().drop_columns("key").to_pylist()
        return [ImageRow(**row) for row in columns]

    def manifest_bytes(self) -> bytes:
        """The Parquet file itself, checked."""
        return self._checked(self.document.manifest)

    def verify(self) -> None:
        """Read every file of the window and compare it with its digest.

        Raises:
            IntegrityError: Names the first file that is not what was ingested.
        """
        for name in self.document.files:
            self._checked(name)

    def rows(self, split: Split | None = None) -> list[ImageRow]:
        """Usable rows, of one side of the split or of both."""
        return [r for r in self.manifest() if r.status == "ok" and split in (None, r.split)]

    def images(self, rows: list[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
        """Stream image bytes, a shard at a time, each checked against its digest.

        Raises:
            IntegrityError: A shard is missing or an image's bytes are not what was packed.
        """
        by_shard: dict[str, list[ImageRow]] = {}
        for row in rows:
            by_shard.setdefault(row.shard or "", []).append(row)
        for shard, members in sorted(by_shard.items()):
            try:
                whole = self.store.get(self._key(shard)) if len(members) > RANGED_READS else None
            except KeyMissing as error:
                raise self._broken(shard, "is missing") from error
            for row in members:
                image = self._cut(shard, row, whole)
                if sha256_hex(image) != row.sha256:
                    raise self._broken(shard, f"holds other bytes for image {row.sha256[:12]} ({row.source})")
                yield row, image

    def _cut(self, shard: str, row: ImageRow, whole: bytes | None) -> bytes:
        start = row.offset or 0
        if whole is not None:
            return whole[start : start + row.bytes]
        try:
            return self.store.get(self._key(shard), offset=start, length=row.bytes)
        except KeyMissing as error:
            raise self._broken(shard, "is missing") from error

    def _checked(self, name: str) -> bytes:
        try:
            data = self.store.get(self._key(name))
        except KeyMissing as error:
            raise self._broken(name, "is missing") from error
        if sha256_hex(data) != self.document.files[name]:
            raise self._broken(name, f"has SHA-256 {sha256_hex(data)}")
        return data

    def _key(self, name: str) -> str:
        return f"datasets/{self.document.dataset}/windows/{self.document.id}/{name}"

    def _broken(self, name: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.uri}/{self._key(name)} {what}",
            expected="the bytes that were ingested",
            next_command=f"restore it from a backup, or remove the window and ingest {self.document.source} again",
        )


def select_rows(window: Window, split: Split | None, earlier: Sequence[Window]) -> list[ImageRow]:
    """Usable rows of a window that are new in it and stand on the side they have always stood on.

    The split goes by content, but an image can come again under another group, and a configured fraction can change.
    What a window before this one holds stays where it was: such rows, and groups that would change sides, are left out.

    Args:
        window: The window to read.
        split: Side of the split, or None for both.
        earlier: Windows that came before it.
    """
    seen: set[str] = set()
    sides: dict[str, Split] = {}
    for past in earlier:
        for row in past.rows():
            seen.add(row.sha256)
            if row.group:
                sides.setdefault(row.group, row.split)
    return [
        row
        for row in window.rows(split)
        if row.sha256 not in seen and (row.group is None or sides.get(row.group, row.split) == row.split)
    ]


def _shards(rows: list[ImageRow], shard_bytes: int) -> Iterator[list[ImageRow]]:
    batch: list[ImageRow] = []
    size = 0
    for row in rows:
        if batch and size + row.bytes > shard_bytes:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row.bytes
    if batch:
        yield batch


def _write_shard(
    path: Path, rows: list[ImageRow], read_image: Callable[[ImageRow], bytes], progress: Callable[[int], object]
) -> list[ImageRow]:
    """Write one deterministic USTAR file: sorted members, no time, no owner."""
    packed = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            data = read_image(row)
            if sha256_hex(data) != row.sha256:
                raise IntegrityError(
                    f"{row.source} changed while it was being packed",
                    expected="a source that nobody writes to during ingest",
                    next_command="run again when the delivery is complete",
                )
            _add(tar, f"{row.sha256}.{(row.format or 'bin').lower()}", data)
            offset = tar.offset - len(data) - (-len(data)) % tarfile.BLOCKSIZE
            _add(tar, f"{row.sha256}.cls", row.label.encode())
            packed.append(replace(row, offset=offset))
            progress(1)
    return packed


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _to_parquet(rows: list[ImageRow]) -> bytes:
    records: list[dict[str, Any]] = [{"key": r.sha256, **r.__dict__} for r in rows]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))
