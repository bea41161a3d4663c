"""Where a delivery lies: a local folder or an `s3://` prefix, listed as a stream and read file by file.

Covers names and errors. What tables and tars name stays inside the place; links in a local folder are followed wherever
they lead, as data sets under version control need it. Not covered: what the files mean (`sources`).
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat as stat_module
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from components.core.config import StoreConfig
from components.core.errors import SourceError
from components.core.storage import KeyMissing, ObjectStore, check_key, open_store

READ_AHEAD_BYTES = 8 * 2**20
# Controls, separators of lines, marks that turn the direction of writing, and what is no UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
READERS = 16  # requests in flight: a small object is nearly all latency


class ListedFile(NamedTuple):
    """One file of a delivery. `name`: path below the place, with `/`. `stamp` changes when the file does."""

    name: str
    size: int
    stamp: str


class Place(Protocol):
    """A folder of files, wherever it is. Can be sent to another process."""

    local: bool  # a look into a file costs no request

    @property
    def uri(self) -> str:
        """What to call it in messages."""

    def list_files(self) -> Iterator[ListedFile]:
        """Stream the files, in an order that does not change.

        Raises:
            SourceError: There is no such place, or a file that could not be told apart or read.
        """

    def find(self, name: str) -> ListedFile | None:
        """Describe one file, or return None where there is none."""

    def read_many(self, names: list[str], most: int) -> Iterator[bytes]:
        """Read files in order, few of them ahead.

        Raises:
            SourceError: One is not there, or has more than `most` bytes.
        """

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading at any position."""


def check_name(name: str, where: str) -> str:
    """The one gate for names from outside: they stay below the place and can be printed.

    Args:
        name: A path with `/`.
        where: What holds it, for the message.

    Returns:
        The name, without the `./` that some tools put before it.

    Raises:
        SourceError: The name is absolute, has an empty, `.`, `..` or over-long part, a control character or no UTF-8.
    """
    bare = name.removeprefix("./")
    parts = bare.split("/")
    if CONTROL.search(bare) or "\\" in bare or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts):
        raise SourceError(
            f"{where} holds the name {name[:300]!r}",
            expected="relative UTF-8 names without `..`, empty or over-long parts, backslashes or control characters",
            next_command="rename it in the delivery",
        )
    return bare


def ignored(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a part of a name matches one of the patterns (globs) that are passed over."""
    return any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in patterns)


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine. `ignore`: glob patterns of file and folder names that are passed over."""

    root: Path
    ignore: tuple[str, ...]
    local = True

    @property
    def uri(self) -> str:
        return str(self.root)

    def list_files(self) -> Iterator[ListedFile]:
        if not self.root.is_dir():
            raise SourceError(
                f"{self.root} is {'a file' if self.root.exists() else 'not there'}",
                expected="a folder of class folders, of tars or of Parquet files; a .csv, .parquet or .tar file",
                next_command="retrain run SOURCE, with a path that exists",
            )
        try:
            yield from self._walk()
        except OSError as error:
            raise SourceError(
                f"{self.root} cannot be listed: {error.strerror}: {error.filename!r}",
                expected="a delivery that is complete and that nobody changes while it is read",
                next_command="check its rights; run again when the delivery is complete",
            ) from error

    def find(self, name: str) -> ListedFile | None:
        path = self.root / name
        try:
            stat = path.stat()
        except OSError:
            return None
        return self._listed(name, stat) if stat_module.S_ISREG(stat.st_mode) else None

    def read_many(self, names: list[str], most: int) -> Iterator[bytes]:
        for name in names:
            with self.open(name) as file:
                yield _not_larger(self, name, file.read(most + 1), most)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            file = (self.root / name).open("rb")
        except OSError as error:
            raise _gone(self, name) from error
        with file:
            yield file

    def _walk(self) -> Iterator[ListedFile]:
        """In order of name. Links to files are followed; any other link is an error, not a silence."""
        waiting = _entries(str(self.root))
        while waiting:
            entry = waiting.pop()
            if ignored(entry.name, self.ignore):
                continue
            name = entry.path[len(str(self.root)) + 1 :]
            if entry.is_dir(follow_symlinks=False):
                waiting += _entries(entry.path)
            elif entry.is_symlink() and not Path(entry.path).is_file():  # False also where links go in circles
                raise SourceError(
                    f"{self.uri}/{check_name(name, self.uri)} is a link that leads to no file",
                    expected="images, or links to images; folders themselves",
                    next_command="replace it by what it stands for (cp -rL), or add its name to ingest.ignore",
                )
            elif entry.is_file():
                yield self._listed(name, entry.stat())

    def _listed(self, name: str, stat: os.stat_result) -> ListedFile:
        return ListedFile(
            name=check_name(name, self.uri), size=stat.st_size, stamp=f"{stat.st_size}-{stat.st_mtime_ns}"
        )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, the last name first: it is taken from the end."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name, reverse=True)


@dataclass(frozen=True)
class Bucket:
    """A prefix of an S3-compatible store; `config.uri` names it, the rest says how to get there."""

    config: StoreConfig
    ignore: tuple[str, ...]
    local = False

    @property
    def uri(self) -> str:
        return self.config.uri

    def list_files(self) -> Iterator[ListedFile]:
        for listed in self._store.list_objects():
            if listed.key.endswith("/") and not listed.size:  # a folder, as browsers of buckets make them
                continue
            if not ignored(listed.key, self.ignore):
                name = check_name(listed.key, self.uri)
                yield ListedFile(name=name, size=listed.size, stamp=f"{listed.size}-{listed.modified.isoformat()}")

    def find(self, name: str) -> ListedFile | None:
        info = self._store.head(self._key(name))
        return ListedFile(name=name, size=info.size, stamp=info.etag) if info else None

    def read_many(self, names: list[str], most: int) -> Iterator[bytes]:
        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[Future[bytes]] = deque()
            for name in names:
                ahead.append(pool.submit(self._read, name, most))
                if len(ahead) == READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        info = self._store.head(self._key(name))
        if info is None:
            raise _gone(self, name)
        with io.BufferedReader(_RemoteFile(self._store, name, info.size), READ_AHEAD_BYTES) as file:
            try:
                yield file
            except KeyMissing as error:
                raise _gone(self, name) from error

    def _read(self, name: str, most: int) -> bytes:
        try:
            return _not_larger(self, name, self._store.get(self._key(name), length=most + 1), most)
        except KeyMissing as error:
            raise _gone(self, name) from error

    def _key(self, name: str) -> str:
        try:
            return check_key(name)
        except ValueError as error:
            raise SourceError(
                f"{self.uri} holds the name {name!r}",
                expected="names that a store may hold: no part that is empty, and no dot at the beginning",
                next_command="rename it in the delivery",
            ) from error

    @property
    def _store(self) -> ObjectStore:
        return _connect(self.config, os.getpid())


@lru_cache(maxsize=1)
def _connect(config: StoreConfig, process: int) -> ObjectStore:
    """A client of this process's own: connections must not be shared with the one it was forked from."""
    return open_store(config)


class _RemoteFile(io.RawIOBase):
    """An object of a store as a file that can be read at any position."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store, self._object, self._size, self._position = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        data = self._store.get(self._object, offset=self._position, length=wanted) if wanted > 0 else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _not_larger(place: Place, name: str, data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise SourceError(
            f"{place.uri}/{name} has more than {most} bytes",
            expected=f"at most {most} (ingest.max_image_bytes)",
            next_command="remove it, or raise ingest.max_image_bytes",
        )
    return data


def _gone(place: Place, name: str) -> SourceError:
    return SourceError(
        f"{place.uri}/{name} cannot be read",
        expected="a delivery that is complete and that nobody changes while it is read",
        next_command="run again when the delivery is complete",
    )
