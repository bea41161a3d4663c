"""Compile the pipeline for a cluster. Submitting and scheduling come here too: the only user of `kfp.Client`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from components.core.errors import ConfigurationError


def compile_for_cluster(path: Path) -> Path:
    """Compile with the image that pods will run.

    Raises:
        ConfigurationError: RETRAIN_IMAGE is not set, or the path is no YAML file in a folder that exists.
    """
    if not os.environ.get("RETRAIN_IMAGE"):
        raise ConfigurationError(
            "RETRAIN_IMAGE is not set",
            expected="the image of the steps, by digest: the trainer target of the Dockerfile",
            next_command="RETRAIN_IMAGE=REGISTRY/retrain/trainer@sha256:... retrain compile",
        )
    if path.suffix not in (".yaml", ".yml") or not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"--output is {path}",
            expected="a .yaml file in a folder that exists",
            next_command="retrain compile --output pipeline.yaml",
        )
    return compile_pipeline(path)


def compile_pipeline(path: Path) -> Path:
    """Write the pipeline as YAML: two documents, the pipeline and its Kubernetes settings.

    Args:
        path: Where to; its folder must exist.

    Returns:
        The path.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp warns of its own deprecations
        from kfp import compiler

        from pipelines.retraining import retrain

        compiler.Compiler().compile(retrain, str(path))
    return path
