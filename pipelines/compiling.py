"""Compile the pipeline: for the local runner, for the Kubeflow Pipelines API, and as Kubernetes objects.

Not covered: uploading it (`pipelines.client`).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path
from threading import Lock

from components.core.errors import ConfigurationError

DIGEST_CHARACTERS = 16  # 64 bits: of a handful of versions, no two share them
KUBERNETES_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,44}[a-z0-9])?")  # with `-` and the digest at most 63 characters
_one_at_a_time = Lock()  # kfp traces into module-level variables


def compile_for_cluster(path: Path) -> Path:
    """Compile with the image that pods will run.

    Raises:
        ConfigurationError: RETRAIN_IMAGE is not set, or the path is no YAML file in a folder that exists.
    """
    _check(path)
    return compile_pipeline(path)


def compile_for_kubernetes(path: Path, name: str, namespace: str | None = None) -> Path:
    """Compile to a Pipeline and a PipelineVersion object, for a Kubeflow that keeps its pipelines in Kubernetes.

    The version is called as `retrain submit` would call it, and so is found, not uploaded again.

    Args:
        path: See `compile_for_cluster`.
        name: What `kubeflow.pipeline` says: the name of the Pipeline object.
        namespace: Of both objects; None leaves it to kubectl.

    Raises:
        ConfigurationError: See `compile_for_cluster`; the name is none for an object of Kubernetes.
    """
    _check(path)
    if not KUBERNETES_NAME.fullmatch(name):
        raise ConfigurationError(
            f"the name {name!r}",
            expected="lower-case letters, digits, - and ., at most 46",
            next_command="retrain compile --kubernetes --name retrain",
        )
    with tempfile.TemporaryDirectory(prefix="retrain-compile-") as folder:
        version = version_name(name, compile_pipeline(Path(folder, "pipeline.yaml")).read_bytes())
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import compiler
        from kfp.compiler.compiler_utils import KubernetesManifestOptions

        from pipelines.retraining import retrain

        options = KubernetesManifestOptions(
            pipeline_name=name, pipeline_version_name=version, namespace=namespace, include_pipeline_manifest=True
        )
        compiler.Compiler().compile(
            retrain, str(path), kubernetes_manifest_format=True, kubernetes_manifest_options=options
        )
    return path


def version_name(pipeline: str, compiled: bytes) -> str:
    """Name of a version of the pipeline: by its content, so that the same one is uploaded once."""
    return f"{pipeline}-{hashlib.sha256(compiled).hexdigest()[:DIGEST_CHARACTERS]}"


def compile_pipeline(path: Path) -> Path:
    """Write the pipeline as YAML: two documents, the pipeline and its Kubernetes settings.

    Args:
        path: Where to; its folder must exist.

    Returns:
        The path.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp warns of its own deprecations
        from kfp import compiler

        from pipelines.retraining import retrain

        compiler.Compiler().compile(retrain, str(path))
    return path


def _check(path: Path) -> None:
    if not os.environ.get("RETRAIN_IMAGE"):
        raise ConfigurationError(
            "RETRAIN_IMAGE is not set",
            expected="the image of the steps, by digest: the trainer target of the Dockerfile",
            next_command="RETRAIN_IMAGE=REGISTRY/retrain/trainer@sha256:... and the same command again",
        )
    if path.suffix not in (".yaml", ".yml") or not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"--output is {path}",
            expected="a .yaml file in a folder that exists",
            next_command="retrain compile --output pipeline.yaml",
        )
