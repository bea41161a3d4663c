"""Folders of files that never change: named by the digest of their manifest, which is written last.

Model versions and evidence bundles are such folders. A file that the manifest does not list does not belong there, and
is refused as much as one that has changed. Not covered: what the files mean (`models`, `promote`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from components.core.errors import IntegrityError
from components.core.storage import KeyMissing, ObjectStore, sha256_hex, to_json

MANIFEST = "manifest.json"
# No way out of the folder, and the same on every file system, lengths included.
_NAME = re.compile(r"\w[\w.-]{0,99}(/\w[\w.-]{0,99}){0,7}", re.ASCII)
BLOCK = 64 * 2**20  # bytes of a file that are in memory at once while it is only checked


class Manifest(BaseModel):
    """SHA-256 of every file of a folder, by its name there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    @property
    def digest(self) -> str:
        """Name of the folder: the first 32 hexadecimal characters of this manifest's own SHA-256."""
        return sha256_hex(to_json(self))[:32]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder of a store and the digest that its manifest must have."""

    store: ObjectStore
    folder: str
    digest: str

    def manifest(self) -> Manifest:
        """The list of the files, checked against the digest.

        Raises:
            IntegrityError: It is missing, not what was written, or names what is no file of this folder.
        """
        data = self._get(MANIFEST)
        if sha256_hex(data)[:32] != self.digest:
            raise self._broken(MANIFEST, f"has digest {sha256_hex(data)[:32]}")
        try:
            manifest = Manifest.model_validate_json(data, extra="ignore")
        except ValueError as error:
            raise self._broken(MANIFEST, f"is no manifest: {error}") from error
        if odd := [name for name in manifest.files if not is_file_name(name)]:
            raise self._broken(MANIFEST, f"lists {odd[0]!r}, which is no name of a file in this folder")
        return manifest

    def read(self, name: str) -> bytes:
        """Read one file, checked against the manifest.

        Raises:
            IntegrityError: The folder, the file or its digest is not what was written; the message names the file.
        """
        return self._checked(name, self.manifest())

    def files(self) -> dict[str, bytes]:
        """Read all files, the manifest included, and make sure that there is no other.

        Raises:
            IntegrityError: Names the first file that is not what was written.
        """
        manifest = self.manifest()
        self._refuse_others(manifest)
        return {MANIFEST: self._get(MANIFEST), **{name: self._checked(name, manifest) for name in manifest.files}}

    def verify(self) -> Manifest:
        """Check every file, one at a time, and that there is no other.

        Raises:
            IntegrityError: Names the first file that is not what was written.
        """
        manifest = self.manifest()
        self._refuse_others(manifest)
        for name, digest in manifest.files.items():
            if (found := self._sha256(name)) != digest:
                raise self._broken(name, f"has SHA-256 {found}")
        return manifest

    def _refuse_others(self, manifest: Manifest) -> None:
        names = (listed.key.removeprefix(f"{self.folder}/") for listed in self.store.list_objects(f"{self.folder}/"))
        if other := next((name for name in names if name != MANIFEST and name not in manifest.files), None):
            raise self._broken(other, "is not listed in the manifest")

    def _checked(self, name: str, manifest: Manifest) -> bytes:
        if name not in manifest.files:
            raise self._broken(name, "is not listed in the manifest")
        data = self._get(name)
        if sha256_hex(data) != manifest.files[name]:
            raise self._broken(name, f"has SHA-256 {sha256_hex(data)}")
        return data

    def _sha256(self, name: str) -> str:
        digest, offset = hashlib.sha256(), 0
        while True:
            block = self._get(name, offset=offset, length=BLOCK)
            digest.update(block)
            offset += len(block)
            if len(block) < BLOCK:
                return digest.hexdigest()

    def _get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        try:
            return self.store.get(f"{self.folder}/{name}", offset=offset, length=length)
        except KeyMissing as error:
            raise self._broken(name, "is missing") from error

    def _broken(self, name: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.uri}/{self.folder}/{name} {what}",
            expected="the files that were written when the folder was made, and no other",
            next_command="restore the file from a backup, then `retrain verify` checks every file",
        )


def is_file_name(name: str) -> bool:
    """Whether this is a file in a folder: ASCII, relative, `/`-separated, no part that begins with a dot."""
    return _NAME.fullmatch(name) is not None and name != MANIFEST


def save_artifact(store: ObjectStore, parent: str, files: dict[str, bytes]) -> Artifact:
    """Write a folder, manifest last. Writing the same files again changes nothing.

    Args:
        parent: Key of the folder that it becomes a part of.
        files: Name to content; `manifest.json` is ours.
    """
    assert all(map(is_file_name, files)), list(files)
    manifest = Manifest(files={name: sha256_hex(data) for name, data in sorted(files.items())})
    folder = f"{parent}/{manifest.digest}"
    for name, data in files.items():
        store.put(f"{folder}/{name}", data)
    store.put(f"{folder}/{MANIFEST}", to_json(manifest))
    return Artifact(store=store, folder=folder, digest=manifest.digest)


def list_artifacts(store: ObjectStore, parent: str) -> list[str]:
    """Digests of the complete folders of a parent."""
    keys = [listed.key.removeprefix(f"{parent}/") for listed in store.list_objects(f"{parent}/")]
    return [digest for digest, _, name in (key.partition("/") for key in keys) if name == MANIFEST]
