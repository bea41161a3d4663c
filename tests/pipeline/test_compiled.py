"""The compiled pipeline: as recorded, free of what the backend gets wrong, and with the settings a GPU pod needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiling import compile_pipeline
from tests.pipeline.irlint import lint

GOLDEN = Path(__file__).parents[1] / "golden" / "retraining.yaml"
IMAGE = "localhost/retrain/python:0.1.0"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "retraining.yaml")


def test_compiled_pipeline_is_the_recorded_one(compiled: Path):
    if os.environ.get("RETRAIN_REGENERATE"):
        GOLDEN.write_text(compiled.read_text())
    assert compiled.read_text() == GOLDEN.read_text(), "make golden rewrites it"


def test_compiled_pipeline_has_nothing_the_backend_gets_wrong(compiled: Path):
    assert lint(compiled, IMAGE) == []


def cache_a_task(spec: dict[str, Any]) -> None:
    spec["root"]["dag"]["tasks"]["report"]["cachingOptions"] = {"enableCache": True}


def count_gpus_with_an_integer(spec: dict[str, Any]) -> None:
    for component in (spec["root"], *spec["components"].values()):
        for name, parameter in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if name.endswith("gpu_count"):
                parameter["parameterType"] = "NUMBER_INTEGER"


def use_a_foreign_image(spec: dict[str, Any]) -> None:
    spec["deploymentSpec"]["executors"]["exec-gate"]["container"]["image"] = "other"


def embed_a_placeholder(spec: dict[str, Any]) -> None:
    parameter = {"runtimeValue": {"constant": "runs/{{$.pipeline_job_uuid}}"}}
    spec["root"]["dag"]["tasks"]["report"]["inputs"]["parameters"]["run_id"] = parameter


def branch_without_an_else(spec: dict[str, Any]) -> None:
    spec["root"]["dag"]["tasks"]["exit-handler-1"]["triggerPolicy"] = {"condition": "1 == 2"}


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (cache_a_task, "caching on"),
        (count_gpus_with_an_integer, "reads only strings"),
        (use_a_foreign_image, "image other"),
        (embed_a_placeholder, "whole string"),
        (branch_without_an_else, "lone dsl.If"),
    ],
)
def test_lint_finds_what_it_is_for(compiled: Path, tmp_path: Path, break_it: Callable[[Any], None], problem: str):
    spec, platform = yaml.safe_load_all(compiled.read_text())
    break_it(spec)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump_all([spec, platform]))
    assert any(problem in sentence for sentence in lint(broken, IMAGE))


def test_training_pod_has_gpu_toleration_shared_memory_and_timeout(compiled: Path):
    document, platform = yaml.safe_load_all(compiled.read_text())
    container = document["deploymentSpec"]["executors"]["exec-train"]["container"]
    accelerator = container["resources"]["accelerator"]
    assert "gpu_type" in accelerator["resourceType"]
    assert "gpu_count" in accelerator["resourceCount"]
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {mount["mountPath"] for mount in pod["emptyDirMounts"]} == {"/dev/shm", "/var/cache/retrain"}
    assert int(pod["activeDeadlineSeconds"]) == 24 * 3600


@pytest.mark.parametrize("setting", ["activeDeadlineSeconds", "configMapAsVolume", "secretAsEnv"])
def test_every_pod_has_a_timeout_the_configuration_and_credentials(compiled: Path, setting: str):
    document, platform = yaml.safe_load_all(compiled.read_text())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = document["deploymentSpec"]["executors"]
    assert [name for name in executors if setting not in pods[name]] == []


def test_default_configuration_path_is_where_the_config_map_is_mounted(compiled: Path):
    document, platform = yaml.safe_load_all(compiled.read_text())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    default = document["root"]["inputDefinitions"]["parameters"]["config"]["defaultValue"]
    mounts = {mount["mountPath"] for pod in pods.values() for mount in pod["configMapAsVolume"]}
    assert mounts == {str(Path(default).parent)}


def test_start_form_has_few_parameters_with_defaults(compiled: Path):
    parameters = yaml.safe_load(compiled.read_text().split("\n---\n")[0])["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"source", "config", "strategy", "gpu_type", "gpu_count"}
    assert [name for name, p in parameters.items() if "defaultValue" not in p] == []
    assert all(p["description"] for p in parameters.values())
