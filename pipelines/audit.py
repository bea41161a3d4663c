"""Checking what a promotion rests on: in the store, or in a folder that was exported, where it needs nothing else.

Not covered: how evidence is made (`components.promote`).
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.core.artifacts import MANIFEST, Artifact
from components.core.contracts import Document
from components.core.errors import ConfigurationError, IntegrityError
from components.core.registry import Registry
from components.core.storage import DirectoryStore, sha256_hex, to_json
from components.core.windows import Window
from components.promote.provenance import Provenance
from components.promote.signature import EVIDENCE, INDEX, SIGNATURE, VERSION, check_signature
from pipelines.status import open_configured


class BundleIndex(Document):
    """`bundle.json` of an exported bundle: the digests of the manifests of its two folders."""

    version: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    evidence: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def verify_version(config_path: Path, version: str | None, key: Path | None = None) -> str:
    """Check the ledger, all files of a version (by default the champion's; the start of
    its id is enough) and of its evidence, and the windows it was trained on.

    Args:
        key: Public key that the evidence must be signed with; None: a signature is not looked at.

    Raises:
        IntegrityError: Names what is not as it was written.
        ConfigurationError: There is no champion to check.
    """
    config, store = open_configured(config_path)
    registry = Registry(store, config.model)
    records = registry.verify_ledger()
    found = find_version(registry, version)
    files = len(registry.verify_version(found).files)
    lineage = registry.lineage(found)
    for window in lineage.windows:
        Window.open(store, config.dataset, window).verify()
    evidence = registry.evidence_of(found)
    told = _check_evidence(registry, found, evidence, key) if evidence else _without_evidence(found, key)
    return (
        f"{found}: {files} files as written; {told}; its {len(lineage.windows)} windows as ingested; "
        f"ledger: {records} records, unbroken"
    )


def find_version(registry: Registry, start: str | None) -> str:
    """The version whose id starts so; the champion by default.

    Raises:
        ConfigurationError: There is not exactly one.
    """
    if start is None and (champion := registry.champion()):
        return champion.version
    if start and re.fullmatch(r"[0-9a-f]{32}", start):
        return start  # whole or damaged: that is for who reads it to say
    matches = [version for version in registry.versions() if start and version.startswith(start)]
    if len(matches) != 1:
        raise ConfigurationError(
            f"{len(matches)} versions that start with {start!r}" if start else f"{registry.model} has no champion",
            expected="one version",
            next_command="retrain status shows the champion; retrain run FOLDER makes one",
        )
    return matches[0]


def need_evidence(registry: Registry, version: str) -> str:
    """Digest of the evidence that a version was promoted on.

    Raises:
        ConfigurationError: It was not promoted, or by a release that filed none.
    """
    evidence = registry.evidence_of(version)
    if evidence is None:
        raise ConfigurationError(
            f"the ledger names no evidence for version {version}",
            expected="a version that was promoted with evidence",
            next_command="retrain status shows the champion; its next promotion files evidence",
        )
    return evidence


def _check_evidence(registry: Registry, version: str, evidence: str, key: Path | None) -> str:
    files = len(registry.evidence(evidence).verify().files)
    _check_subject(registry.evidence(evidence), version)
    if key is None:
        signed = SIGNATURE in registry.evidence(evidence).manifest().files
        return f"evidence {evidence}: {files} files as written, {_unchecked(signed)}"
    with tempfile.TemporaryDirectory(prefix="retrain-verify-") as folder:
        write_bundle(registry, version, Path(folder))
        check_signature(Path(folder), key)
    return f"evidence {evidence}: {files} files as written, signed with {key}"


def _without_evidence(version: str, key: Path | None) -> str:
    if key is not None:
        raise IntegrityError(
            f"version {version} has no evidence, so no signature",
            expected=f"evidence that is signed with {key}",
            next_command="promote it anew with promotion.signing_key set",
        )
    return "no evidence: it was not promoted, or by an earlier release"


def _unchecked(signed: bool) -> str:
    return "signed (not checked: give --key PUBLIC.pem)" if signed else "not signed"


def write_bundle(registry: Registry, version: str, folder: Path) -> int:
    """Write a version and the evidence it was promoted on as one folder, each file checked on the way.

    Args:
        folder: Empty, or not there yet.

    Returns:
        How many files that are.

    Raises:
        ConfigurationError: The folder has something in it, or there is no evidence.
        IntegrityError: A file is not what was written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(
            f"{folder} is there and not an empty folder", expected="a new folder", next_command="name another folder"
        )
    index = BundleIndex(version=version, evidence=need_evidence(registry, version))
    parts = {VERSION: registry.version(version).files(), EVIDENCE: registry.evidence(index.evidence).files()}
    files = {f"{part}/{name}": data for part, named in parts.items() for name, data in named.items()}
    files[INDEX] = to_json(index)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return len(files)


def export_bundle(config_path: Path, version: str | None, folder: Path) -> str:
    """`write_bundle` for a version of a configured model; says what to do with it."""
    config, store = open_configured(config_path)
    registry = Registry(store, config.model)
    found = find_version(registry, version)
    return f"{found}: {write_bundle(registry, found, folder)} files; next: retrain verify {folder}"


def verify_folder(folder: Path, key: Path | None = None) -> str:
    """Check an exported bundle: every file, no other file, and the signature where a key is given. Nothing else is
    needed: no store, no configuration, no network.

    Raises:
        IntegrityError: Names what is not as it was written.
        ConfigurationError: The key is none.
    """
    _refuse_strangers(folder)
    index, store = _read_index(folder), DirectoryStore(folder)
    parts = [
        Artifact(store=store, folder=VERSION, digest=index.version),
        Artifact(store=store, folder=EVIDENCE, digest=index.evidence),
    ]
    for part in parts:
        _check_name(folder, part)
    files = sum(len(part.verify().files) for part in parts)
    _check_subject(parts[1], index.version)
    if key is not None:
        check_signature(folder, key)
    told = f"signed with {key}" if key else _unchecked((folder / EVIDENCE / SIGNATURE).exists())
    return f"version {index.version}, evidence {index.evidence}: {files} files as written, {told}"


def _read_index(folder: Path) -> BundleIndex:
    path = folder / INDEX
    try:
        data = path.read_bytes()
        index = BundleIndex.model_validate_json(data)
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read: {error}") from error
    if data != to_json(index):
        raise _broken(path, "is not as `retrain export` writes it")
    return index


def _refuse_strangers(folder: Path) -> None:
    """Nothing may lie beside the two folders, and all must be files and folders: a link, pipe or device is not read."""
    for path in sorted(folder.rglob("*")):
        known = path.relative_to(folder).parts[0] in (VERSION, EVIDENCE) or path == folder / INDEX
        if not known:
            raise _broken(path, "does not belong to the bundle")
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _broken(path, "is a link" if path.is_symlink() else "is no file")


def _check_name(folder: Path, part: Artifact) -> None:
    """The index and the manifest each say what the other must be."""
    path = folder / part.folder / MANIFEST
    if path.is_file() and (found := sha256_hex(path.read_bytes())[:32]) != part.digest:
        raise _broken(folder / INDEX, f"names {part.digest}, and {path} has digest {found}: one of both was changed")


def _check_subject(evidence: Artifact, version: str) -> None:
    """Evidence tells whose it is: that of another version would be as whole as its own."""
    path = Path(evidence.store.uri, evidence.folder, "provenance.json")
    try:
        about = Provenance.model_validate_json(evidence.read("provenance.json"), extra="ignore").version
    except ValueError as error:
        raise _broken(path, f"does not say where a version comes from: {error}") from error
    if about != version:
        raise _broken(path, f"is about version {about}, not {version}")


def _broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what}",
        expected="the bundle that was exported",
        next_command="retrain export --bundle FOLDER writes it anew from the store",
    )
