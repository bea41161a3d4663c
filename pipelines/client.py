"""Compile the pipeline for a cluster. Submitting and scheduling come here too: the only user of `kfp.Client`."""

from __future__ import annotations

import warnings
from pathlib import Path


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
