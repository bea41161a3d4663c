"""Batches of a delivery: what one worker reads in one go, and does again after a crash.

Covers plain image files. Not covered: images inside tars (`archives`) and Parquet files (`tables`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from components.core.config import IngestConfig
from components.core.errors import ConfigurationError, SourceError
from components.ingest.places import CONTROL, Place

BATCH_FILES, BATCH_BYTES = 256, 32 * 2**20  # small enough to lose, large enough to make the hand-over cheap
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
# First bytes of the formats that are read. An empty file counts as a broken image.
SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM|RIFF....WEBP|II\*\x00|MM\x00\*|\Z", re.DOTALL)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{8,}")  # shorter ones may be what is left of an image


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """One image as it came. `name`: where it stands in the source; `label`: None while there is none."""

    name: str
    label: str | None
    group: str | None
    data: bytes


class Batch(Protocol):
    """Some images of a source. Can be sent to another process."""

    @property
    def fingerprint(self) -> str:
        """Digest of what it reads: the same batch of an unchanged source has the same one."""

    def check(self, config: IngestConfig) -> None:
        """Find what would stop `read`, where that costs little.

        Raises:
            SourceError: See `read`.
        """

    def read(self, config: IngestConfig) -> Iterator[Delivered]:
        """Stream the images, always in the same order, in bounded memory.

        Raises:
            SourceError: Something that is no image, or that cannot be read.
        """


class LabelledFile(NamedTuple):
    """One image file of a place. `size` in bytes, 0 where a listing does not tell; `stamp` changes when it does."""

    name: str
    label: str | None
    group: str | None
    size: int
    stamp: str


@dataclass(frozen=True)
class FileBatch:
    """Image files of a place."""

    place: Place
    files: tuple[LabelledFile, ...]

    @cached_property
    def fingerprint(self) -> str:
        return digest_of(self.place.uri, *map(tuple, self.files))

    def check(self, config: IngestConfig) -> None:
        if self.place.local:
            for file in self.files:
                with self.place.open(file.name) as opened:
                    check_image(self.place, file.name, opened.read(16))

    def read(self, config: IngestConfig) -> Iterator[Delivered]:
        contents = self.place.read_many([file.name for file in self.files], config.max_image_bytes)
        for file, data in zip(self.files, contents, strict=True):
            check_image(self.place, file.name, data)
            yield Delivered(name=file.name, label=file.label, group=file.group, data=data)


def pack_files(place: Place, files: Iterable[LabelledFile]) -> Iterator[FileBatch]:
    """Cut a stream of files into batches."""
    batch: list[LabelledFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) == BATCH_FILES or size + file.size > BATCH_BYTES):
            yield FileBatch(place, tuple(batch))
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield FileBatch(place, tuple(batch))


def digest_of(*parts: object) -> str:
    """SHA-256 of values that print the same whenever they are the same."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def check_image(place: Place, name: str, data: bytes) -> None:
    """Tell a file that is no image from one that may be broken: text is none, whatever it is called.

    Raises:
        SourceError: It is no image.
    """
    head = data[:16]
    if not SIGNATURES.match(head) and (TEXT.fullmatch(head) or not name.lower().endswith(SUFFIXES)):
        raise SourceError(
            f"{place.uri}/{name} is no image: it starts with {head!r}",
            expected="JPEG, PNG, GIF, BMP, WebP or TIFF",
            next_command=f"remove it, or add {name.rpartition('/')[2]!r} to ingest.ignore",
        )


def check_text(value: object, what: str, where: str) -> str | None:
    """A label or group from outside as text; None where it is empty: not labelled yet, or of no group.

    Args:
        value: Text or a number. 3.0 is 3 and NaN is empty: tables with gaps are stored so.
        what: label or group, for the message.
        where: What holds it, for the message.

    Raises:
        SourceError: It is something else, has control characters, or is longer than a file name may be.
    """
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        value = None if math.isnan(value) else int(value)
    text = "" if value is None else str(value).strip()
    if not isinstance(value, str | int | float | None) or CONTROL.search(text) or len(text.encode()) > 255:
        raise SourceError(
            f"{where} has the {what} {text[:80]!r}",
            expected="text of at most 255 bytes without control characters, or a number",
            next_command=f"mend the {what}s of the delivery",
        )
    return text or None


def group_of(name: str, config: IngestConfig) -> str | None:
    """The group that `ingest.group_pattern` finds in a name, if any.

    Raises:
        ConfigurationError: The pattern is no regular expression with a group.
    """
    if not config.group_pattern:
        return None
    try:
        pattern = re.compile(config.group_pattern)
    except re.error as error:
        raise _no_pattern(f"{config.group_pattern} ({error})") from error
    if not pattern.groups:
        raise _no_pattern(config.group_pattern)
    match = pattern.search(name)
    return (match[1] or None) if match else None


def _no_pattern(pattern: str) -> ConfigurationError:
    return ConfigurationError(
        f"ingest.group_pattern is {pattern}",
        expected="a regular expression with one group, such as '(clip-[0-9]+)'",
        next_command="mend ingest.group_pattern",
    )
