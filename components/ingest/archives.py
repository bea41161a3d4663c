"""WebDataset tars: samples of members that share a name, read as a stream and never unpacked to disk."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from components.core.config import IngestConfig
from components.core.errors import SourceError
from components.ingest.batches import SUFFIXES, Delivered, check_label, digest_of, group_of
from components.ingest.places import ListedFile, Place, check_name

SIDECAR_BYTES = 2**20  # a label or a description is not larger


@dataclass(frozen=True)
class TarBatch:
    """One tar of a place. A sample is an image with `.cls` (its label) or `.json` (an object) beside it."""

    place: Place
    file: ListedFile

    @property
    def fingerprint(self) -> str:
        return digest_of(self.place.uri, self.file.name, self.file.stamp)

    def check(self, config: IngestConfig) -> None:
        if self.place.local:
            for _ in self._members(config):
                pass

    def read(self, config: IngestConfig) -> Iterator[Delivered]:
        for key, members in groupby(self._members(config), key=lambda member: _key(member.name)):
            sample = _Sample()
            for member in members:
                sample.add(member, f"{self.file.name}/{key}")
            for name, data in sample.images:
                yield Delivered(
                    name=f"{self.file.name}/{name}",
                    label=check_label(sample.label(config), f"{self.place.uri}/{self.file.name}/{name}"),
                    group=sample.group(config) or group_of(name, config),
                    data=data,
                )

    def _members(self, config: IngestConfig) -> Iterator[_Member]:
        """Regular members in order. What could reach outside the tar, or grow without end, is refused by name."""
        where = f"{self.place.uri}/{self.file.name}"
        with self.place.open(self.file.name) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in tar:
                        tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has seen
                        if info.isdir():
                            continue
                        check_name(info.name, where)
                        if not info.isreg() or info.issparse():
                            raise _refuse(where, f"{info.name!r}, which is a link, a device or sparse", "regular files")
                        most = config.max_image_bytes if info.name.lower().endswith(SUFFIXES) else SIDECAR_BYTES
                        if info.size > most:
                            raise _refuse(where, f"{info.name!r} of {info.size} bytes", f"at most {most} bytes")
                        yield _Member(info.name, tar, info)
            except tarfile.TarError as error:
                raise _refuse(where, f"no tar, or a part of one ({error})", "a whole uncompressed tar") from error


@dataclass(frozen=True)
class _Member:
    name: str
    tar: tarfile.TarFile
    info: tarfile.TarInfo

    def read(self) -> bytes:
        file = self.tar.extractfile(self.info)
        assert file is not None, "only regular members come here"
        data = file.read()
        if len(data) < self.info.size:
            raise tarfile.ReadError(f"{self.name} is cut off")
        return data


@dataclass
class _Sample:
    """The members of one sample: images, and what is said about them."""

    images: list[tuple[str, bytes]] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)

    def add(self, member: _Member, where: str) -> None:
        name = member.name.lower()
        if name.endswith(SUFFIXES):
            self.images.append((member.name, member.read()))
        elif name.endswith((".cls", ".json")):
            try:
                text = member.read().decode()
                self.said |= {"cls": text} if name.endswith(".cls") else _object(text)
            except ValueError as error:
                raise _refuse(where, f"{member.name!r} that cannot be read ({error})", "UTF-8 text or JSON") from error

    def label(self, config: IngestConfig) -> object:
        return self.said.get("cls", self.said.get(config.label_column))

    def group(self, config: IngestConfig) -> str | None:
        group = self.said.get(config.group_column) if config.group_column else None
        return None if group is None else str(group)


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004  # as what is no JSON at all
    return found


def _key(name: str) -> str:
    """What members of one sample share: the path up to the first dot of the last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _refuse(where: str, what: str, expected: str) -> SourceError:
    return SourceError(
        f"{where} holds {what}", expected=f"a WebDataset tar: {expected}", next_command="make the delivery again"
    )
