"""What the processes of an ingest do: read a batch, look at its images, keep their bytes at hand.

The results lie in a spool folder, one file of image bytes and one of rows a batch, so that an ingest that is killed
goes on where it was. An image at which a worker dies (a decoder that crashes, memory) is counted as unreadable. Not
covered: what a batch reads (`batches`), what decoding tells (`inspection`), and the processes (`processes`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.config import IngestConfig
from components.core.errors import IntegrityError, SourceError
from components.core.storage import sha256_hex
from components.core.windows import FACTS, SCHEMA, split_of
from components.ingest.batches import Batch, Delivered, digest_of
from components.ingest.inspection import ImageFacts, inspect_image
from components.ingest.processes import Workers

logger = logging.getLogger(__name__)
MOST_CRASHES = 20  # images of a batch that kill a worker; more, and it is the machine that is broken
ROWS = 1024  # written at a time: a tar may hold a million
ABANDONED_SECONDS = 7 * 24 * 3600  # a spool that nobody came back to
# A row as a worker writes it: as in the manifest, and where its bytes are.
SPOOLED = pa.schema(
    [field for field in SCHEMA if field.name not in ("key", "shard", "offset")]
    + [pa.field("spool", pa.string()), pa.field("at", pa.int64())]
)


@contextmanager
def spool_folder(cache: Path, source: str, config: IngestConfig) -> Iterator[Path]:
    """Give an ingest the spool of its source, alone; it is removed when all went well.

    Args:
        cache: Folder of the local cache.
        source: What is ingested.
        config: How; another configuration gets another spool.
    """
    spools = cache / "spool"
    how = config.model_dump_json(exclude={"workers", "shard_bytes"})  # which change nothing about what is read
    folder = spools / digest_of(source, how, version("retrain-pipeline"))[:32]
    spools.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        _remove_abandoned(spools)
        try:
            yield folder
        except IntegrityError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _remove_abandoned(spools: Path) -> None:
    for folder in spools.glob("*.lock"):
        spool = folder.with_suffix("")
        with folder.open("a") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if spool.exists() and time.time() - spool.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(spool)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One batch to do: where its files go, and which of its images (by position) have killed a worker before."""

    batch: Batch
    folder: Path
    config: IngestConfig
    deadly: frozenset[int] = frozenset()

    def file(self, suffix: str) -> Path:
        """One of the batch's files: `rows` (there once it is done), `bytes`, `at` (position of the image looked at)."""
        return self.folder / f"{self.batch.fingerprint[:32]}.{suffix}"


def read_batches(workers: Workers, batches: Iterable[Batch], folder: Path, config: IngestConfig) -> Iterator[pa.Table]:
    """Read all batches on all cores.

    Yields:
        Rows of `SPOOLED`, a batch at a time, in order.

    Raises:
        SourceError: See `Batch.read`.
        IntegrityError: What an ingest that was killed has left is damaged.
    """
    work = (Work(batch=batch, folder=folder, config=config) for batch in batches)
    for path in workers.map(read_batch, work, leave_out):
        try:
            with pa.OSFile(str(path)) as file:
                yield pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid as error:  # a machine that lost its power keeps a file's name, not all that is in it
            raise damaged_spool(folder) from error


def damaged_spool(folder: Path) -> IntegrityError:
    """The error for what cannot be what a worker wrote; `spool_folder` then removes all of it."""
    return IntegrityError(
        f"what a half-done ingest left in {folder} is damaged, and was removed",
        expected="the bytes that were read from the source",
        next_command="run again: the delivery is read anew",
    )


def read_batch(work: Work) -> Path:
    """Read one batch, unless that is done: image bytes to its spool file, then its rows. Returns the file of rows."""
    done = work.file("rows")
    if done.exists():
        return done
    with pa.OSFile(str(work.file("part")), "wb") as file, pa.ipc.new_file(file, SPOOLED) as writer:
        rows = _look_at_images(work)
        while records := list(islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(records, schema=SPOOLED))
    work.file("at").unlink()
    return work.file("part").rename(done)


def _look_at_images(work: Work) -> Iterator[dict[str, Any]]:
    with work.file("bytes").open("wb") as spool, work.file("at").open("wb") as position:
        for number, image in enumerate(work.batch.read(work.config)):
            os.pwrite(position.fileno(), number.to_bytes(8), 0)
            facts = "decoding crashed" if number in work.deadly else inspect_image(image.data, work.config.max_pixels)
            yield {**_row(image, facts, work.config), "spool": Path(spool.name).name, "at": spool.tell()}
            if isinstance(facts, ImageFacts):
                spool.write(image.data)


def leave_out(work: Work) -> Work:
    """The same batch without looking at the image that killed the worker.

    Raises:
        SourceError: That was tried too often.
    """
    position = work.file("at")
    number = int.from_bytes(position.read_bytes()) if position.exists() else 0  # it died before the first image
    logger.warning("reading images: a worker died at image %d of a batch", number)
    if number in work.deadly or len(work.deadly) == MOST_CRASHES:
        raise SourceError(
            f"{len(work.deadly)} images of one batch at which a worker died",
            expected="images, and memory enough to decode ingest.max_pixels",
            next_command="lower ingest.max_pixels or ingest.workers; look at the delivery",
        )
    return replace(work, deadly=work.deadly | {number})


def _row(image: Delivered, facts: ImageFacts | str, config: IngestConfig) -> dict[str, Any]:
    digest = sha256_hex(image.data)
    row = {"sha256": digest, "label": image.label, "group": image.group, "bytes": len(image.data), "source": image.name}
    if isinstance(facts, str):
        return {**row, **dict.fromkeys(FACTS), "status": "unreadable", "reason": facts, "split": "none"}
    split = split_of(digest, image.group, config.holdout_fraction)
    return {**row, **vars(facts), "status": "ok", "reason": None, "split": split}
