"""WebDataset tars: samples of members that share a name, read as a stream and never unpacked to disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from components.core.config import IngestConfig
from components.core.errors import SourceError
from components.ingest.batches import BATCH_BYTES, SUFFIXES, Delivered, check_text, digest_of, group_of
from components.ingest.places import ListedFile, Place, check_name, ignored
from components.ingest.tars import BadTar, Member, read_members

SIDECAR_BYTES = 2**20  # a label or a description is not larger


@dataclass(frozen=True)
class TarBatch:
    """Samples of a tar from one place in it to another, or to its end. A sample is an image with `.cls` (its label) or
    `.json` (an object) beside it."""

    place: Place
    file: ListedFile
    start: int = 0
    end: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        return digest_of(self.place.uri, self.file.name, self.file.stamp, self.start, self.end)

    def check(self, config: IngestConfig) -> None:
        """Nothing: cutting a local tar has read all headers."""

    def read(self, config: IngestConfig) -> Iterator[Delivered]:
        for key, members in groupby(self.members(config), key=lambda member: _key(member.name)):
            where = f"{self.place.uri}/{self.file.name}: {key}"
            sample = _Sample()
            for member in members:
                try:
                    sample.add(member, config)
                except ValueError as error:  # BadTar among them
                    raise _refuse(where, f"{member.name!r}: {error}") from error
            if sample.said and not sample.images:
                raise _refuse(where, "a label or a description without its image beside it")
            label = check_text(sample.said.get("cls", sample.said.get(config.label_column)), "label", where)
            for name, data in sample.images:
                full = f"{self.file.name}/{name}"
                group = check_text(sample.said.get(config.group_column or ""), "group", where)
                yield Delivered(name=full, label=label, group=group or group_of(full, config), data=data)

    def members(self, config: IngestConfig) -> Iterator[Member]:
        """Members in order, each to be read before the next.

        What could reach outside the tar, or grow without end, is refused by name.
        """
        where = f"{self.place.uri}/{self.file.name}"
        with self.place.open(self.file.name) as file:
            try:
                file.seek(self.start)
                for member in read_members(file, self.end):
                    name = check_name(member.name, where)
                    if ignored(name, config.ignore):
                        continue
                    most = config.max_image_bytes if name.lower().endswith(SUFFIXES) else SIDECAR_BYTES
                    if member.size > most and name.lower().endswith((*SUFFIXES, ".cls", ".json")):
                        raise _refuse(where, f"{name!r} of {member.size} bytes, at most {most} are read")
                    yield replace(member, name=name)
            except BadTar as error:
                raise _refuse(where, str(error)) from error


def cut_tar(place: Place, file: ListedFile, config: IngestConfig) -> Iterator[TarBatch]:
    """Cut a tar into batches between samples; one that is not local stays whole: looking for the cuts would read it.

    Raises:
        SourceError: See `TarBatch.read`.
    """
    whole = TarBatch(place, file)
    if not place.local:
        yield whole
        return
    start, key = 0, None
    for member in whole.members(config):
        if _key(member.name) != key and member.begin - start >= BATCH_BYTES:
            yield TarBatch(place, file, start, member.begin)
            start = member.begin
        key = _key(member.name)
    yield TarBatch(place, file, start)


@dataclass
class _Sample:
    """The members of one sample: images, and what is said about them."""

    images: list[tuple[str, bytes]] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)

    def add(self, member: Member, config: IngestConfig) -> None:
        name = member.name.lower()
        if name.endswith(SUFFIXES):
            if sum(len(data) for _, data in self.images) + member.size > config.max_image_bytes:
                raise ValueError(f"the images of one sample have more than {config.max_image_bytes} bytes")
            self.images.append((member.name, member.read()))
        elif name.endswith(".cls"):
            self.said["cls"] = member.read().decode()
        elif name.endswith(".json"):
            self.said |= _object(member.read())


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004  # as what is no JSON at all
    return found


def _key(name: str) -> str:
    """What members of one sample share: the path up to the first dot of the last part."""
    folder, separator, last = name.rpartition("/")
    return f"{folder}{separator}{last.partition('.')[0]}"


def _refuse(where: str, what: str) -> SourceError:
    return SourceError(
        f"{where}: {what}",
        expected="a whole uncompressed WebDataset tar of regular files: images, each with .cls or .json beside it",
        next_command="make the delivery again",
    )
