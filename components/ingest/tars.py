"""Read the members of a tar from outside as a stream, and refuse what a tar of images has no need of.

Python's tarfile follows what headers claim: sizes below zero make it loop, long names and extended headers may claim
gigabytes, and a damaged header ends the archive in silence. Here only its parser of one header block is used; regular
files and folders are read, with ustar, GNU and pax names of bounded length, up to the end mark, which must be there.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MOST_NAME_BYTES = 64 * 1024  # of a long name or an extended header
PAX_KEYS = ("path", "size")  # the others say nothing about where the bytes are; GNU.sparse.* does, and is refused


class BadTar(ValueError):
    """The bytes are no tar that is read here; the message says why."""


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its name, its size in bytes, where its headers begin, and the tar. To be read once,
    before the next one."""

    name: str
    size: int
    begin: int
    file: BinaryIO

    def read(self) -> bytes:
        """The member's bytes.

        Raises:
            BadTar: The tar ends within them.
        """
        return _exactly(self.file, self.size)


def read_members(file: BinaryIO, end: int | None = None) -> Iterator[Member]:
    """Stream the regular files of a tar in order.

    Args:
        file: Seekable, where the headers of a member begin.
        end: Where the headers of another one begin, which is not read any more; None: up to the end mark.

    Raises:
        BadTar: Something that is no header, no regular file or folder, or no end mark.
    """
    pax: dict[str, str] = {}
    long_name: str | None = None
    first = file.tell()
    while end is None or first < end:
        header = _header(_exactly(file, tarfile.BLOCKSIZE))
        if header is None:
            return
        begin = file.tell()
        padded = header.size + -header.size % tarfile.BLOCKSIZE
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if header.size > MOST_NAME_BYTES:
                raise BadTar(f"a name or extended header of {header.size} bytes")
            data = _exactly(file, header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(data.rstrip(b"\0"))
            elif header.type == tarfile.XHDTYPE:
                pax = _pax(data)
            else:
                _pax(data)
            file.seek(begin + padded)
            continue
        name = pax.get("path") or long_name or header.name
        size = _size(pax["size"]) if "size" in pax else header.size
        pax, long_name = {}, None
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/"):
            yield Member(name, size, first, file)
        elif header.type != tarfile.DIRTYPE and not name.endswith("/"):
            raise BadTar(f"{name!r}, which is a link, a device or sparse")
        first = begin + size + -size % tarfile.BLOCKSIZE
        file.seek(first)


def _header(block: bytes) -> tarfile.TarInfo | None:
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise BadTar(f"no tar header where one belongs ({error})") from error
    if header.size < 0:
        raise BadTar(f"{header.name!r} with a size of {header.size}")
    return header


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BadTar("no tar, or only a part of one: bytes are missing")
    return data


def _pax(data: bytes) -> dict[str, str]:
    """The records `length key=value` of an extended header, as far as they matter here."""
    found: dict[str, str] = {}
    while data:
        length_text, space, _ = data.partition(b" ")
        length = _size(_text(length_text))
        key, equals, value = _text(data[len(length_text) + 1 : length - 1]).partition("=")
        if not space or not equals or not len(length_text) + 1 < length <= len(data) or key.startswith("GNU.sparse"):
            raise BadTar(f"an extended header that is not read: {data[:40]!r}")
        found |= {key: value} if key in PAX_KEYS else {}
        data = data[length:]
    return found


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadTar(f"a size of {text[:40]!r}")
    return int(text)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
