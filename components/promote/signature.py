"""Signatures over all files of a version and its evidence, in the OpenSSF model-signing format, with a local EC key.

Offline: no certificate, no transparency log. Whoever has the public key checks an exported bundle with `retrain verify`
or with OpenSSF's own tool. Source: https://github.com/sigstore/model-transparency (DSSE envelope, in-toto statement).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.artifacts import MANIFEST
from components.core.errors import ConfigurationError, IntegrityError

VERSION, EVIDENCE, INDEX = "version", "evidence", "bundle.json"  # of an exported bundle
SIGNATURE = "model.sig"
# Named after what they hold, the signature among it: they cannot be in it, and what they list is.
UNSIGNED = (f"{EVIDENCE}/{MANIFEST}", f"{EVIDENCE}/{SIGNATURE}", INDEX)


def sign(files: Mapping[str, bytes], private_key: str) -> bytes:
    """Sign files.

    Args:
        files: By their path in an exported bundle.
        private_key: PEM file with a key on P-256, P-384 or P-521.

    Raises:
        ConfigurationError: There is no such key, or model-signing is not installed.
    """
    signing, hashing = _library("signing"), _library("hashing")
    with tempfile.TemporaryDirectory(prefix="retrain-sign-") as folder:
        root, signature = Path(folder, "bundle"), Path(folder, SIGNATURE)
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        # The unsigned names go into the signature, so that OpenSSF's tool passes them over by itself.
        hashed = hashing.Config().set_ignored_paths(paths=[root / name for name in UNSIGNED], ignore_git_paths=False)
        try:
            signer = signing.Config().set_hashing_config(hashed).use_elliptic_key_signer(private_key=private_key)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"promotion.signing_key {private_key}: {error}",
                expected="a PEM file with an EC private key without a password",
                next_command="openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
            ) from error
        signer.sign(root, signature)
        return signature.read_bytes()


def check_signature(folder: Path, public_key: Path) -> None:
    """Check the signature of an exported bundle against all its files.

    Raises:
        IntegrityError: It is another key's, forged, of other files, or none; the message names the files.
        ConfigurationError: There is no such key, or model-signing is not installed.
    """
    verifying, hashing = _library("verifying"), _library("hashing")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"key {public_key}: {error}",
            expected="a PEM file with an EC public key",
            next_command="openssl ec -in key.pem -pubout -out key.pub",
        ) from error
    path = folder / EVIDENCE / SIGNATURE
    if not path.exists():
        raise _refused(path, "is missing: the promotion was not signed")
    unsigned = [folder / name for name in UNSIGNED]
    try:
        verifier.set_hashing_config(hashing.Config().set_ignored_paths(paths=unsigned, ignore_git_paths=False))
        verifier.verify(folder, path)
    except Exception as error:  # whatever a forged file makes the library raise, it is not a valid signature
        raise _refused(path, f"is not valid: {error or type(error).__name__}") from error


def _refused(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"signature {EVIDENCE}/{path.name} {what}",
        expected="the signature of exactly these files by the holder of the key",
        next_command="do not use this model; ask whoever signed it for the bundle and the public key",
    )


def _library(module: str) -> Any:
    """A module of model-signing, which is not in every installation and slow to import."""
    from importlib import import_module

    try:
        return import_module(f"model_signing.{module}")
    except ImportError as error:
        raise ConfigurationError(
            f"signatures need a package that is not installed: {error}",
            expected="model-signing and pyopenssl",
            next_command="pip install 'retrain-pipeline[sign]'",
        ) from error
