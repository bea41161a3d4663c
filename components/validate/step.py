"""Validate: read the manifest, run the suite, file the report."""

from __future__ import annotations

import io

from components.core.contracts import ValidationReport
from components.core.runs import Run, open_run, perform
from components.core.windows import SCHEMA, Window


def run(config_path: str, run_id: str, window: str) -> ValidationReport:
    """Validate a window. A window that fails is a verdict, not an error."""
    record = open_run(config_path, run_id)
    return perform("validate", record, ValidationReport, lambda: _validate(record, window))


def _validate(record: Run, window: str) -> ValidationReport:
    import pandas as pd

    from components.validate.suite import validate_manifest

    config = record.config
    manifest = Window.open(record.store, config.dataset, window).manifest_bytes()
    return validate_manifest(pd.read_parquet(io.BytesIO(manifest)), config.validation, SCHEMA.names)
