"""The object store: one small protocol, a directory and an S3 implementation that behave alike.

Everything that correctness rests on is `put_new`: create-only, decided by what is read back, never by the answer
alone. A reply can be lost after the server has acted, and an HTTP client's own retry then meets its own first write
as "precondition failed". Callers that must exclude each other put a nonce into the data.

Not covered: what the keys mean (`registry`, `runs`, `windows`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from pydantic import BaseModel

from components.core.errors import ConditionUnsupported, ConfigurationError, IntegrityError, StoreUnreachable

if TYPE_CHECKING:
    from components.core.config import StoreConfig


M = TypeVar("M", bound=BaseModel)
TEMPORARY = ".tmp"  # folder of a directory store in which files are written before they get their name
STALE_ETAG = "stale ETag"


class KeyMissing(Exception):
    """No object under this key. Raised by the store, handled by its callers."""


@dataclass(frozen=True, kw_only=True)
class ListedObject:
    """One object of a listing, `size` in bytes."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, kw_only=True)
class ObjectInfo(ListedObject):
    """One object looked at by itself. `etag` is opaque; it changes whenever the content does."""

    etag: str


@dataclass(frozen=True, kw_only=True)
class ListedFolder:
    """A beginning that keys have in common, up to a `/`, without it."""

    key: str


@dataclass(frozen=True, kw_only=True)
class UnfinishedWrite:
    """A write that was cut off, or is under way: what is there of it, `size` bytes, is no object. `name` tells people
    what it is, `handle` tells the store."""

    name: str
    handle: str
    size: int
    started: datetime


class ObjectStore(Protocol):
    """What the product needs of a store. Keys are relative, `/`-separated, without empty or dot parts."""

    uri: str

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read an object, or `length` bytes of it from `offset`.

        Raises:
            KeyMissing: There is no such object.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """Describe an object, or return None where there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what is there."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object unless its key is taken.

        Returns:
            True when the object under `key` now holds exactly `data`, False when it holds something else. Writing
            the same bytes again is therefore harmless and answers True.
        """

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """Replace an object only if it still is the one with `etag`.

        Returns:
            True when the object under `key` now holds exactly `data`.

        Raises:
            ConditionUnsupported: The server does not implement it.
        """

    def upload(self, key: str, path: Path) -> None:
        """Write an object from a file, in bounded memory."""

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ListedObject]:
        """Stream the objects whose key starts with `prefix`, in order of key, those after `start_after`."""

    def list_children(self) -> Iterator[ListedObject | ListedFolder]:
        """Stream what lies right below the root, in no particular order. Costs as much as there is of that, whatever
        the folders hold."""

    def delete(self, key: str) -> None:
        """Remove an object; removing a missing one is no error."""

    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        """List the writes that left something behind which is no object."""

    def discard(self, write: UnfinishedWrite) -> None:
        """Remove what is there of a write; a missing one is no error. A write that still is under way fails."""

    def try_bad_writes(self, key: str) -> dict[str, bool]:
        """Try writes over an object that a sound store refuses: under an ETag that is not the object's, with a checksum
        that is not the data's. Each would leave its own name as the object's content.

        Returns:
            For each by name, whether the store refused.
        """

    def check_reachable(self, *, write: bool) -> None:
        """Prove that the store answers, without changing it.

        Args:
            write: Whether it must be writable too, as far as that can be told without writing.

        Raises:
            StoreUnreachable: No answer, no permission, or nothing there.
        """


def open_store(config: StoreConfig) -> ObjectStore:
    """Open the store that a configuration names. Contacts nothing yet.

    Raises:
        ConfigurationError: The URI is neither a directory nor `s3://bucket/prefix`.
    """
    if config.uri.startswith("s3://"):
        from botocore.exceptions import BotoCoreError

        try:
            return S3Store(config)
        except (ValueError, BotoCoreError) as error:  # an address without a scheme, a profile that is not there
            raise ConfigurationError(
                f"store {config.uri} at {config.endpoint_url}: {error}",
                expected="store.endpoint_url such as https://host:9000, and a profile that exists",
                next_command="mend the store section of the configuration, or AWS_PROFILE",
            ) from error
    if "://" in config.uri:
        raise ConfigurationError(
            f"store.uri is {config.uri!r}", expected="a directory or s3://bucket/prefix", next_command="mend store.uri"
        )
    return DirectoryStore(Path(config.uri))


def check_key(key: str) -> str:
    """The one gate for keys, so that none can leave the root.

    Raises:
        ValueError: The key is absolute, or has an empty, dot or over-long part, or a control character.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or not key.isprintable():
        raise ValueError(f"not a key of the store: {key!r}")
    if parts[0].startswith("."):
        raise ValueError(f"keys that start with a dot are the store's own: {key!r}")
    return key


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def to_json(document: BaseModel) -> bytes:
    """A document as JSON for the store: readable, and the same bytes for the same values."""
    return json.dumps(document.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def get_json(store: ObjectStore, key: str, kind: type[M]) -> M | None:
    """Read a document, or None where there is none.

    Raises:
        IntegrityError: The object is not such a document.
    """
    try:
        data = store.get(key)
    except KeyMissing:
        return None
    try:
        return kind.model_validate_json(data, extra="ignore")  # a newer or older release may know more fields
    except ValueError as error:
        raise IntegrityError(
            f"{store.uri}/{key} is no {kind.__name__}: {error}",
            expected="the document that was written",
            next_command="restore the object from a backup of the store, or remove it if nothing refers to it",
        ) from error


class DirectoryStore:
    """A directory with the semantics of an object store, for one machine or a POSIX network file system.

    Create-only is link(2); compare-and-swap is rename(2) under an flock; data and directory are fsynced before a
    write is acknowledged. A writer killed at any point leaves a temporary file in `.tmp`, never a torn object.

    The root itself is created on the first write, its parent must exist: a typing error must not grow a tree.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        try:
            with self._path(key).open("rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise KeyMissing(key) from error

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                etag = hashlib.file_digest(file, "sha256").hexdigest()
                stat = os.fstat(file.fileno())  # of the object just read: the name may hold another one by now
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return ObjectInfo(key=key, size=stat.st_size, etag=etag, modified=datetime.fromtimestamp(stat.st_mtime, UTC))

    def put(self, key: str, data: bytes) -> None:
        with self._staged(key, data) as staged:
            os.replace(staged, self._path(key))

    def put_new(self, key: str, data: bytes) -> bool:
        with self._staged(key, data) as staged:
            try:
                os.link(staged, self._path(key))
            except FileExistsError:
                return self.get(key) == data
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        with self._staged(key, data) as staged, self._locked(key):
            current = self.head(key)
            if current is None or current.etag != etag:
                return current is not None and current.etag == sha256_hex(data)
            os.replace(staged, self._path(key))
        return True

    def upload(self, key: str, path: Path) -> None:
        with path.open("rb") as source, self._staged(key, source) as staged:
            os.replace(staged, self._path(key))

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ListedObject]:
        parent = prefix.rpartition("/")[0]
        folder = self._path(parent) if parent else self.root
        for path in _files_in_key_order(folder, self.root):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and key > start_after:
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # deleted while it was being listed
                modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                yield ListedObject(key=key, size=stat.st_size, modified=modified)

    def list_children(self) -> Iterator[ListedObject | ListedFolder]:
        for entry in _visible(self.root, self.root):
            if entry.is_dir():
                yield ListedFolder(key=entry.name)
                continue
            with suppress(FileNotFoundError):  # deleted while it was being listed, or a link to nowhere
                stat = entry.stat()
                modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                yield ListedObject(key=entry.name, size=stat.st_size, modified=modified)

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder is no object; what removing one answers differs between systems
            if path.exists() and not path.is_dir():
                raise self._refused(error) from error

    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        for path in sorted((self.root / TEMPORARY).glob("*")):
            with suppress(FileNotFoundError):  # finished while they were being listed
                stat = path.stat()
                started = datetime.fromtimestamp(stat.st_mtime, UTC)
                yield UnfinishedWrite(
                    name=f"{TEMPORARY}/{path.name}", handle=path.name, size=stat.st_size, started=started
                )

    def discard(self, write: UnfinishedWrite) -> None:
        (self.root / TEMPORARY / write.handle).unlink(missing_ok=True)

    def try_bad_writes(self, key: str) -> dict[str, bool]:
        return {STALE_ETAG: not self.put_if_match(key, STALE_ETAG.encode(), sha256_hex(b"never there"))}

    def check_reachable(self, *, write: bool) -> None:
        folder = self.root if self.root.exists() else self.root.parent
        rights = os.R_OK | os.X_OK | (os.W_OK if write else 0)
        if not (folder.is_dir() and os.access(folder, rights)):
            raise StoreUnreachable(
                f"no {'writable' if write else 'readable'} directory at {folder}",
                expected="store.uri to name a directory whose parent exists, with the rights to use it",
                next_command=f"ls -ld {folder}; mend store.uri or the rights, or mkdir -p {folder}",
            )

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*check_key(key).split("/"))

    @contextmanager
    def _staged(self, key: str, content: bytes | BinaryIO) -> Iterator[Path]:
        """Put content into a synced temporary file, hand it out, sync the target's folder, clean up."""
        target = self._path(key)
        temporary = self.root / TEMPORARY
        if not self.root.exists():
            self.check_reachable(write=True)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            self._make_folder(target.parent)
            descriptor, name = tempfile.mkstemp(dir=temporary)
        except OSError as error:
            raise self._refused(error) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    shutil.copyfileobj(content, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            yield Path(name)
            _sync_folder(target.parent)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            Path(name).unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self.root}: {error}",
            expected="a directory with room, rights to write, and hard links",
            next_command=f"check it: df -h {self.root}; ls -ld {self.root}",
        )

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and sync the entry of each new one, or a power loss could take the first object in it."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        locks = self.root / ".lock"
        locks.mkdir(exist_ok=True)
        with (locks / sha256_hex(key.encode())).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _files_in_key_order(folder: Path, root: Path) -> Iterator[Path]:
    """Walk files so that their keys come in byte order, as S3 lists them: `a-b` before `a/b`, `a/b` before `ab`."""
    for entry in sorted(_visible(folder, root), key=lambda e: e.name + "/" if e.is_dir() else e.name):
        if entry.is_dir():
            yield from _files_in_key_order(Path(entry.path), root)
        else:
            yield Path(entry.path)


def _visible(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, but for the store's own."""
    try:
        return [entry for entry in os.scandir(folder) if not (folder == root and entry.name.startswith("."))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Store:
    """A bucket and prefix on any S3-compatible server, through boto3.

    Conditions are only ever put on a single PUT: multipart uploads lose them on several servers. Both spellings of
    an ETag are tried for If-Match, since Ceph 16 compares without quotes and AWS with them.
    """

    def __init__(self, config: StoreConfig) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config as ClientConfig

        self.bucket, _, prefix = config.uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._attempts = config.max_attempts
        # The CRT client ignores endpoint_url: with a private server it would send the data to AWS. Classic always.
        self._transfer = TransferConfig(
            multipart_chunksize=32 * 2**20, io_chunksize=2**20, max_concurrency=8, preferred_transfer_client="classic"
        )
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            config=ClientConfig(
                connect_timeout=config.connect_timeout_seconds,
                max_pool_connections=32,
                read_timeout=config.read_timeout_seconds,
                retries={"mode": "standard", "total_max_attempts": config.max_attempts},
                request_checksum_calculation=config.checksums,
                response_checksum_validation=config.checksums,
                s3={"addressing_style": "path" if config.path_style else "auto"},
            ),
        )

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        end = "" if length is None else offset + max(length, 1) - 1
        ranged = {} if (offset, length) == (0, None) else {"Range": f"bytes={offset}-{end}"}
        with self._errors(key):
            for tries_left in reversed(range(self._attempts)):
                try:
                    data: bytes = self._client.get_object(**self._at(key), **ranged)["Body"].read()
                except ClientError as error:
                    if error.response.get("Error", {}).get("Code") != "InvalidRange":
                        raise
                    return b""  # behind the end there is nothing, as in a file
                except (ResponseStreamingError, IncompleteReadError, ReadTimeoutError):
                    if not tries_left:  # boto3 retries requests, not a body that is cut off
                        raise
                else:
                    return data[:length]
        raise AssertionError("the last try returns or raises")

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._errors(key):
                answer = self._client.head_object(**self._at(key))
        except KeyMissing:
            return None
        return ObjectInfo(
            key=key, size=answer["ContentLength"], etag=answer["ETag"].strip('"'), modified=answer["LastModified"]
        )

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(**self._at(key), Body=data)

    def put_new(self, key: str, data: bytes) -> bool:
        return self._put_conditionally(key, data, [{"IfNoneMatch": "*"}], condition_holds=lambda now: now is None)

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        def unchanged(now: ObjectInfo | None) -> bool:
            return now is not None and now.etag == etag

        return self._put_conditionally(
            key, data, [{"IfMatch": f'"{etag}"'}, {"IfMatch": etag}], condition_holds=unchanged
        )

    def upload(self, key: str, path: Path) -> None:
        from boto3.exceptions import S3UploadFailedError

        try:
            with self._errors(key):
                self._client.upload_file(str(path), *self._at(key).values(), Config=self._transfer)
        except S3UploadFailedError as error:
            raise self._unreachable(error) from error

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ListedObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket,
            Prefix=self.prefix + prefix,
            **({"StartAfter": self.prefix + start_after} if start_after else {}),
        )
        with self._errors(prefix):
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"][len(self.prefix) :]
                    yield ListedObject(key=key, size=entry["Size"], modified=entry["LastModified"])

    def list_children(self) -> Iterator[ListedObject | ListedFolder]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"
        )
        with self._errors(self.prefix):
            for page in pages:
                for folder in page.get("CommonPrefixes", []):
                    yield ListedFolder(key=folder["Prefix"][len(self.prefix) :].removesuffix("/"))
                for entry in page.get("Contents", []):
                    if key := entry["Key"][len(self.prefix) :]:  # the root itself, as browsers of buckets make it
                        yield ListedObject(key=key, size=entry["Size"], modified=entry["LastModified"])

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(**self._at(key))

    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._errors(self.prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix):
                for entry in page.get("Uploads", []):
                    with suppress(KeyMissing):  # finished while they were being listed
                        yield self._unfinished(entry["Key"], entry["UploadId"], entry["Initiated"])

    def _unfinished(self, key: str, upload: str, started: datetime) -> UnfinishedWrite:
        at = {"Bucket": self.bucket, "Key": key, "UploadId": upload}
        with self._errors(key):
            pages = self._client.get_paginator("list_parts").paginate(**at)
            size = sum(part["Size"] for page in pages for part in page.get("Parts", []))
        name = key[len(self.prefix) :]
        return UnfinishedWrite(name=name, handle=upload, size=size, started=started)

    def discard(self, write: UnfinishedWrite) -> None:
        with suppress(KeyMissing), self._errors(write.name):
            # Not through check_key: somebody else's tool may have begun it, under a name that is none of ours.
            at = {"Bucket": self.bucket, "Key": self.prefix + write.name}
            self._client.abort_multipart_upload(**at, UploadId=write.handle)

    def try_bad_writes(self, key: str) -> dict[str, bool]:
        stale, digest = hashlib.md5(b"never there", usedforsecurity=False), hashlib.sha256(b"other data")
        other = hashlib.md5(b"other data", usedforsecurity=False)
        bad = {
            STALE_ETAG: {"IfMatch": f'"{stale.hexdigest()}"'},
            "stale ETag without quotes": {"IfMatch": stale.hexdigest()},
            "wrong MD5": {"ContentMD5": b64encode(other.digest()).decode()},
            "wrong SHA-256": {"ChecksumSHA256": b64encode(digest.digest()).decode()},
        }
        return {name: self._refuses(key, name.encode(), conditions) for name, conditions in bad.items()}

    def _refuses(self, key: str, data: bytes, conditions: dict[str, str]) -> bool:
        from botocore.exceptions import ClientError, ConnectionClosedError

        with self._errors(key):
            try:
                self._client.put_object(**self._at(key), Body=data, **conditions)
            except ConnectionClosedError:
                return True  # over TLS some servers hang up on a request that they refuse
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 409, 412, 501):
                    return True
                raise
        return False

    def check_reachable(self, *, write: bool) -> None:
        next(self.list_objects(), None)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def _put_conditionally(
        self,
        key: str,
        data: bytes,
        spellings: Sequence[dict[str, str]],
        condition_holds: Callable[[ObjectInfo | None], bool],
    ) -> bool:
        """Write under a condition and decide by reading back: any answer but 200 is "unknown" until then.

        While the condition still holds, nobody has won: the write is tried again with the next spelling.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        last: Exception | None = None
        for number in range(self._attempts * len(spellings)):
            try:
                self._client.put_object(**self._at(key), Body=data, **spellings[number % len(spellings)])
            except (ClientError, BotoCoreError) as error:
                self._raise_if_final(error, key)
                last = error
            else:
                return True
            with suppress(StoreUnreachable, KeyMissing):  # still unknown then: go round again
                now = self.head(key)
                if not condition_holds(now):
                    return now is not None and self.get(key) == data
            time.sleep(random.uniform(0, 0.1) * (number + 1))  # noqa: S311  # spreads the writers, decides nothing
        assert last is not None
        raise self._unreachable(last) from last

    def _raise_if_final(self, error: Exception, key: str) -> None:
        """Raise for answers that no repetition changes; return for those that leave the outcome unknown."""
        from botocore.exceptions import ClientError

        response = error.response if isinstance(error, ClientError) else {}
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = response.get("Error", {}).get("Code", "")
        if status == 501 or code == "NotImplemented":
            raise ConditionUnsupported(
                f"{self.uri} does not implement the conditional write of {key} (501)",
                expected="a store with If-None-Match and If-Match on PUT",
                next_command="use one of the stores that README names as verified",
            ) from error
        if status in (400, 401, 403) or (status == 404 and code != "NoSuchKey"):
            raise self._unreachable(error) from error

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Map botocore's exceptions where they enter."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("404", "NoSuchKey", "NotFound", "NoSuchUpload"):
                raise KeyMissing(key) from error
            raise self._unreachable(error) from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self.uri}: {error}",
            expected="a bucket that answers and credentials that may read and write it",
            next_command="check store.uri, store.endpoint_url and the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)",
        )
