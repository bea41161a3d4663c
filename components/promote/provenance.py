"""Where a version comes from: data, parent, code, packages, image, run. For rebuilding it, and for its audit."""

from __future__ import annotations

import os
import platform
from importlib.metadata import distributions
from pathlib import Path

import components
from components.core.contracts import Document, Lineage
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import sha256_hex, to_json

IMAGE_VARIABLE, REVISION_VARIABLE = "RETRAIN_IMAGE", "RETRAIN_REVISION"
LOCAL_VARIABLE = "RETRAIN_LOCAL"  # set by the local runner, whose steps are told an image and do not run in it


class Provenance(Document):
    """`provenance.json`.

    Attributes:
        lineage: Parent, window digests, strategy, recipe and seed, as the version's own `lineage.json` has them.
        drift_seed: Seed of the relabellings of drift detection.
        plan: Digest of the plan that was carried out; `config` that of the configuration of the run.
        code: Digest of this package's sources; `revision` the commit they were built from, where the image says so.
        image: The pod's image, by digest on a cluster; None where no image is known.
        packages: Digest of the sorted `name==version` lines of what is installed; `sbom.json` has them in full.
    """

    model: str
    dataset: str
    version: str
    lineage: Lineage
    drift_seed: int
    run_id: str
    actor: str
    plan: str
    config: str
    code: str
    revision: str | None
    image: str | None
    packages: str
    python: str


def trace(registry: Registry, version: str, record: Run, decision: Decision, actor: str) -> Provenance:
    """Gather where a version of this run comes from.

    Raises:
        IntegrityError: See `Registry.lineage`.
    """
    config = record.config
    return Provenance(
        model=config.model,
        dataset=config.dataset,
        version=version,
        lineage=registry.lineage(version),
        drift_seed=config.drift.seed,
        run_id=record.run_id,
        actor=actor,
        plan=decision.digest,
        config=sha256_hex(to_json(config)),
        code=digest_sources(Path(components.__file__).parent),
        revision=os.environ.get(REVISION_VARIABLE) or None,
        image=None if os.environ.get(LOCAL_VARIABLE) else os.environ.get(IMAGE_VARIABLE) or None,
        packages=digest_packages(),
        python=platform.python_version(),
    )


def digest_sources(package: Path) -> str:
    """SHA-256 over the names and digests of a package's files, bytecode left out."""
    paths = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    lines = [f"{sha256_hex(path.read_bytes())}  {path.relative_to(package).as_posix()}\n" for path in sorted(paths)]
    return sha256_hex("".join(lines).encode())


def digest_packages() -> str:
    """SHA-256 of the sorted `name==version` lines of the installed packages."""
    lines = {f"{found.metadata['Name'].lower()}=={found.version}\n" for found in distributions()}
    return sha256_hex("".join(sorted(lines)).encode())
