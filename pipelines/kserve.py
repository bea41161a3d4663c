"""A version as an InferenceService of KServe, pinned to the digest of its evidence: what was judged is what is served.

The graph lies in the bundle as Triton, KServe's runtime for ONNX, wants it: `serving/<model>/1/model.onnx`. Not
covered: applying it, and the service account that may read the bucket.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from components.core.errors import ConfigurationError
from components.core.registry import Registry
from components.promote.bundle import SERVING
from pipelines.audit import find_version, need_evidence
from pipelines.status import open_configured

RUNTIME = "kserve-tritonserver"  # comes with KServe; by name, since another that takes ONNX may want another layout
ANNOTATION = "retrain.dev"


def export_service(config_path: Path, version: str | None) -> str:
    """The manifest for a version (by default the champion; the start of its id is enough) of a configured model.

    Raises:
        ConfigurationError, IntegrityError: See `inference_service`, `find_version` and `need_evidence`.
    """
    config, store = open_configured(config_path)
    registry = Registry(store, config.model)
    found = find_version(registry, version)
    return inference_service(registry, found, need_evidence(registry, found))


def inference_service(registry: Registry, version: str, evidence: str) -> str:
    """Write the manifest, as YAML.

    Args:
        evidence: Digest of the bundle that the version was promoted on.

    Raises:
        ConfigurationError: The store is a directory, or the bundle has no ONNX graph.
        IntegrityError: The bundle is not what was written.

    Source:
        https://kserve.github.io/website, "Deploying ONNX Models with KServe" (0.16): protocol v2, format onnx.
    """
    bundle = registry.evidence(evidence)
    if not registry.store.uri.startswith("s3://"):
        raise ConfigurationError(
            f"store {registry.store.uri}, which a pod of KServe cannot read",
            expected="a store at s3://bucket/prefix",
            next_command="retrain export --bundle FOLDER, and copy that to where the server reads",
        )
    if not any(name.startswith(f"{SERVING}/") for name in bundle.verify().files):
        raise ConfigurationError(
            f"evidence {evidence} has no ONNX graph",
            expected="a version that was promoted with onnx in promotion.exports",
            next_command="set promotion.exports, and retrain",
        )
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(registry.model),
            "annotations": {
                f"{ANNOTATION}/model": registry.model,
                f"{ANNOTATION}/version": version,
                f"{ANNOTATION}/evidence": evidence,
                f"{ANNOTATION}/run": _run_of(registry, evidence),
            },
        },
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx", "version": "1"},
                    "protocolVersion": "v2",
                    "runtime": RUNTIME,
                    "storageUri": f"{registry.store.uri}/{bundle.folder}/{SERVING}",
                }
            }
        },
    }
    # Quoted: YAML 1.1 and 1.2 do not agree on whether a model called 1e3, n or 0o17 is a text.
    text: str = yaml.safe_dump(service, sort_keys=False, default_style='"')
    return text


def service_name(model: str) -> str:
    """A model's name as a DNS label: lower case, digits and dashes, a letter first, 63 at most."""
    label = re.sub(r"[^a-z0-9]+", "-", model.lower())
    return (label if label[0].isalpha() else f"m-{label}")[:63].strip("-")


def _run_of(registry: Registry, evidence: str) -> str:
    """The run whose promotion rests on the evidence."""
    return next(record.run_id or "" for record in registry.ledger() if record.evidence == evidence)
