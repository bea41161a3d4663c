"""Windows: immutable, digest-named sets of labelled images in the store, and how to read them.

A window is a Parquet manifest (one row an image, read as a pyarrow table) and tar shards in WebDataset naming that hold
the image bytes unchanged. Every byte read is checked against the digest in the manifest. Not covered: making one
(`ingest`) and decoding for training (`datasets`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.core.contracts import WindowDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.storage import KeyMissing, ObjectStore, get_json, sha256_hex

RANGED_READS = 64  # up to this many images of a shard are read one by one, more by reading the shard
Split = Literal["train", "holdout", "none"]

# What decoding an image tells, measured once, at ingest; `ingest.inspection` says what each means. Null where the image
# is unreadable.
FACTS = {
    "width": pa.int32(),
    "height": pa.int32(),
    "channels": pa.int8(),
    "mode": pa.string(),
    "format": pa.string(),
    "quality": pa.int16(),
    "mean": pa.float32(),
    "std": pa.float32(),
    "sharpness": pa.float32(),
    "red": pa.float32(),
    "green": pa.float32(),
    "blue": pa.float32(),
    "red_std": pa.float32(),
    "green_std": pa.float32(),
    "blue_std": pa.float32(),
    "skew": pa.float32(),
    "black": pa.float32(),
    "peak": pa.float32(),
    "midtones": pa.float32(),
    "flat_tail": pa.float32(),
    "doubled": pa.float32(),
    "blockiness": pa.float32(),
    "perceptual_hash": pa.binary(16),
}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # name inside the shard, without extension: the SHA-256
        ("sha256", pa.string()),
        ("label", pa.string()),  # null: not labelled yet
        ("group", pa.string()),  # what makes images dependent: clip, device, upload; null: nothing known
        ("status", pa.string()),  # ok | unreadable | duplicate | conflicting; only ok rows are packed
        ("reason", pa.string()),  # why an unreadable image is
        ("split", pa.string()),  # train | holdout | none
        ("bytes", pa.int64()),
        *FACTS.items(),
        ("source", pa.string()),  # path below the source
        ("shard", pa.string()),
        ("offset", pa.int64()),  # of the image bytes in the shard
    ]
)
READING = ("sha256", "label", "group", "split", "bytes", "source", "shard", "offset")  # all that reading images needs


def split_of(sha256: str, group: str | None, holdout_fraction: float) -> Split:
    """Side of the split by content, so that no image ever moves: equal bytes, or one group, are on one side always.

    Args:
        sha256: Digest of the image bytes.
        group: What makes images dependent, if anything does.
        holdout_fraction: Expected share of the holdout, in (0, 1).
    """
    position = int(sha256_hex((group or sha256).encode())[:13], 16) / 16**13
    return "holdout" if position < holdout_fraction else "train"


def window_id(rows: pa.Table) -> str:
    """Digest of what the images are, whatever their order, their packing or the Parquet writer: 32 hex digits."""
    columns = (rows[name].to_pylist() for name in ("sha256", "label", "group", "status", "split"))
    digest = hashlib.sha256()
    for number, row in enumerate(sorted(json.dumps(row) for row in zip(*columns, strict=True))):
        digest.update(("\n" + row if number else row).encode())
    return digest.hexdigest()[:32]


EMPTY_WINDOW = hashlib.sha256().hexdigest()[:32]  # of no row: what a run gets that takes what is new, and nothing is


def to_parquet(rows: pa.Table) -> bytes:
    """Rows as a Parquet file, whose pages carry checksums."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `to_parquet` wrote; all columns, or some, which is much cheaper."""
    # ParquetFile, not read_table: that imports pyarrow.dataset and with it pandas, a second in every pod.
    return pq.ParquetFile(io.BytesIO(data)).read(columns=columns and list(columns))


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
                next_command="retrain ingest SOURCE",
            )
        return cls(store, document)

    def manifest(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, the packed ones first, in order of digest.

        Args:
            columns: Of `SCHEMA`; all by default. Few are much cheaper.

        Raises:
            IntegrityError: The manifest is not the one that was written.
        """
        return from_parquet(self.manifest_bytes, columns)

    def rows(self, split: Split | None = None, columns: Sequence[str] = READING) -> pa.Table:
        """Usable rows, of one side of the split or of both."""
        table = self.manifest(tuple(dict.fromkeys((*columns, "status", "split"))))
        keep = pc.equal(table["status"], "ok")
        if split:
            keep = pc.and_(keep, pc.equal(table["split"], split))
        return table.filter(keep).select(list(columns))

    def images(self, rows: pa.Table) -> Iterator[tuple[int, bytes]]:
        """Stream image bytes, a shard at a time, each checked against its digest.

        Args:
            rows: Of this window, with the columns `READING`.

        Yields:
            Position in `rows`, and the image's bytes.

        Raises:
            IntegrityError: A shard is missing or an image's bytes are not what was packed.
        """
        columns = {name: rows[name].to_pylist() for name in READING}
        by_shard: dict[str, list[int]] = {}
        for position, shard in enumerate(columns["shard"]):
            by_shard.setdefault(shard, []).append(position)
        for shard, members in sorted(by_shard.items()):
            whole = self._read(shard) if len(members) > RANGED_READS else None
            for position in members:
                start, length = columns["offset"][position], columns["bytes"][position]
                image = whole[start : start + length] if whole else self._read(shard, start, length)
                digest = columns["sha256"][position]
                if sha256_hex(image) != digest:
                    name = columns["source"][position]
                    raise self._broken(shard, f"holds other bytes for image {digest[:12]} ({name})")
                yield position, image

    def verify(self) -> None:
        """Read every file of the window and compare it with its digest.

        Raises:
            IntegrityError: Names the first file that is not what was ingested.
        """
        for name in self.document.files:
            self._checked(name)

    @cached_property
    def manifest_bytes(self) -> bytes:
        """The Parquet file itself, checked."""
        return self._checked(self.document.manifest)

    def _checked(self, name: str) -> bytes:
        data = self._read(name)
        if sha256_hex(data) != self.document.files[name]:
            raise self._broken(name, f"has SHA-256 {sha256_hex(data)}")
        return data

    def _read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            return self.store.get(self._key(name), offset=offset, length=length)
        except KeyMissing as error:
            raise self._broken(name, "is missing") from error

    def _key(self, name: str) -> str:
        return f"datasets/{self.document.dataset}/windows/{self.document.id}/{name}"

    def _broken(self, name: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.uri}/{self._key(name)} {what}",
            expected="the bytes that were ingested",
            next_command=f"restore it from a backup, or remove the window and ingest {self.document.source} again",
        )


class Known:
    """What windows before one hold: images, and the side of the split that each group stands on.

    The split goes by content, but an image can come again under another group, and a configured fraction can change.
    What an earlier window holds stays where it was.
    """

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self._images: set[str] = set()
        self._labelled: set[str] = set()
        self._sides: dict[str, Split] = {}
        for window in windows:
            self.add(window)

    def add(self, window: Window) -> None:
        """Remember a window that came after those added before."""
        rows = window.rows(columns=("sha256", "label", "group", "split"))
        self._images.update(rows["sha256"].to_pylist())
        self._labelled.update(rows["sha256"].filter(pc.is_valid(rows["label"])).to_pylist())
        grouped = rows.filter(pc.not_equal(pc.fill_null(rows["group"], ""), ""))
        for group, side in zip(grouped["group"].to_pylist(), grouped["split"].to_pylist(), strict=True):
            self._sides.setdefault(group, side)

    def new_rows(self, window: Window, split: Split | None, columns: Sequence[str] = READING) -> pa.Table:
        """Usable rows of a window that are new in it and stand on the side they have always stood on.

        An image that was held without a label is new once it has one.

        Args:
            window: The window to read.
            split: Side of the split, or None for both.
            columns: What is wanted of the rows.
        """
        wanted = ("sha256", "label", "group", "split")
        rows = window.rows(split, tuple(dict.fromkeys((*columns, *wanted))))
        keep = [
            digest not in (self._images if label is None else self._labelled)
            and self._sides.get(group or "", side) == side
            for digest, label, group, side in zip(*(rows[name].to_pylist() for name in wanted), strict=True)
        ]
        return rows.filter(pa.array(keep, pa.bool_())).select(list(columns))
