"""The InferenceService of a version: pinned by digest, in the layout of its runtime; and what cannot be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.core.errors import ConfigurationError
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from pipelines.cli import app
from pipelines.kserve import inference_service, service_name


class Bucket(DirectoryStore):
    """A directory that says it is a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.uri = "s3://models/retrain"


GRAPH = {"serving/my.Digits/1/model.onnx": b"graph", "card.md": b"card"}


def promoted(registry: Registry, files: dict[str, bytes]) -> tuple[str, str]:
    """A version in the ledger, and its evidence."""
    version, evidence = registry.save_version({"weights": b"1"}), registry.save_evidence(files)
    asked = {"window": "w", "run_id": "run-1", "actor": "tests", "reason": "because", "evidence": evidence}
    registry.append("promotion", version, expected_champion=None, **asked)
    return version, evidence


def test_service_is_pinned_to_the_evidence_and_says_where_it_comes_from(tmp_path: Path):
    registry = Registry(Bucket(tmp_path / "store"), "my.Digits")
    version, evidence = promoted(registry, GRAPH)
    assert yaml.safe_load(inference_service(registry, version, evidence)) == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "my-digits",
            "annotations": {
                "retrain.dev/model": "my.Digits",
                "retrain.dev/version": version,
                "retrain.dev/evidence": evidence,
                "retrain.dev/run": "run-1",
            },
        },
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx", "version": "1"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": f"s3://models/retrain/models/my.Digits/evidence/{evidence}/serving",
                }
            }
        },
    }


def test_digits_stay_text_in_the_annotations(tmp_path: Path):
    """Kubernetes refuses an annotation that YAML reads as a number."""
    registry = Registry(Bucket(tmp_path / "store"), "m")
    evidence = registry.save_evidence(GRAPH)
    asked = {"window": "w", "actor": "tests", "reason": "because", "evidence": evidence}
    registry.append("promotion", "1" * 32, expected_champion=None, run_id="20260501", **asked)
    annotations = yaml.safe_load(inference_service(registry, "1" * 32, evidence))["metadata"]["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())


@pytest.mark.parametrize(
    ("model", "name"), [("digits", "digits"), ("A_b.c", "a-b-c"), ("7th", "m-7th"), ("x" * 62 + "-y", "x" * 62)]
)
def test_name_is_a_dns_label(model: str, name: str):
    assert service_name(model) == name


def test_directory_and_bundle_without_a_graph_cannot_be_served(tmp_path: Path):
    registry = Registry(DirectoryStore(tmp_path / "store"), "my.Digits")
    with pytest.raises(ConfigurationError, match="which a pod of KServe cannot read"):
        inference_service(registry, *promoted(registry, GRAPH))
    registry = Registry(Bucket(tmp_path / "bucket"), "my.Digits")
    with pytest.raises(ConfigurationError, match="has no ONNX graph"):
        inference_service(registry, *promoted(registry, {"card.md": b"card"}))


def test_export_is_one_of_two_things(tmp_path: Path):
    for options in ([], ["--kserve", "--bundle", str(tmp_path / "bundle")]):
        result = CliRunner().invoke(app, ["export", *options])
        assert isinstance(result.exception, ConfigurationError)
        assert result.exception.expected == "one of them"
