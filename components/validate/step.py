"""Validate: read the manifest and the champion's, run the suite, file the report and its page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from components.core.config import Config
from components.core.contracts import ValidationReport
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.storage import ObjectStore
from components.core.windows import SCHEMA, Window

if TYPE_CHECKING:
    from components.validate.columns import History

PAGE = "validate.html"


def run(config_path: str, run_id: str, window: str) -> tuple[ValidationReport, str]:
    """Validate a window. A window that fails is a verdict, not an error.

    Returns:
        The report, and its page as HTML. Both are of the run record: a step that is run again hands out what is filed.
    """
    record = open_run(config_path, run_id)
    report = perform("validate", record, ValidationReport, lambda: _validate(record, window))
    return report, record.store.get(record.key(PAGE)).decode()


def _validate(record: Run, window: str) -> ValidationReport:
    from components.validate.suite import validate_manifest

    config = record.config
    manifest = Window.open(record.store, config.dataset, window).manifest().to_pandas()
    history = _read_history(record.store, config, window)
    report, page = validate_manifest(manifest, config.validation, SCHEMA.names, history)
    record.store.put(record.key(PAGE), page.encode())  # before the record: where that stands, the page does
    return report


def _read_history(store: ObjectStore, config: Config, window: str) -> History:
    """What the champion has seen but for the window itself, which would count against itself when it is run again."""
    import pandas as pd

    from components.validate.columns import HISTORY_COLUMNS, History

    registry = Registry(store, config.model)
    promotion = registry.champion()
    if promotion is None:
        return History()
    classes = json.loads(registry.read_file(promotion.version, "model.json"))["classes"]
    past = [Window.open(store, config.dataset, w) for w in registry.lineage(promotion.version).windows if w != window]
    rows = [p.manifest(HISTORY_COLUMNS).to_pandas() for p in past]
    return History(classes=tuple(classes), rows=pd.concat(rows, ignore_index=True) if rows else None)
