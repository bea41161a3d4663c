"""Detect drift: what the champion sees in the window, against its reference sample; triage; the page."""

from __future__ import annotations

from components.core.contracts import DriftReport
from components.core.models import ModelSpec
from components.core.reference import load_reference
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.windows import SCHEMA, Known, Window
from components.detect_drift.comparison import compare
from components.detect_drift.features import see_window
from components.detect_drift.history import earlier_looks, file_look, look_at
from components.detect_drift.page import draw_page
from components.detect_drift.regression import compare_previous
from components.detect_drift.triage import find_faults

PAGE = "detect_drift.html"


def run(config_path: str, run_id: str, window: str) -> tuple[DriftReport, str]:
    """Compare a window with the champion's reference. Drift and faults are verdicts, not errors.

    Returns:
        The report, and its page as HTML. Both are of the run record: a step that is run again hands out what is filed.

    Raises:
        IntegrityError: The champion's files are not what was written.
    """
    record = open_run(config_path, run_id)
    report = perform("detect_drift", record, DriftReport, lambda: _detect(record, window))
    return report, record.store.get(record.key(PAGE)).decode()


def _detect(record: Run, window_id: str) -> DriftReport:
    config = record.config
    registry = Registry(record.store, config.model)
    champion = registry.champion()
    window = Window.open(record.store, config.dataset, window_id)
    if champion is None:
        faults = find_faults(window.manifest(), None, config.drift)
        told = window.document
        report = DriftReport(champion=None, rows=told.usable, unlabelled=told.unlabelled, faults=faults)
        return _filed(record, report, draw_page(report))
    version = champion.version
    reference = load_reference(registry, version)
    faults = find_faults(window.manifest(), reference.rows, config.drift)
    known = [Window.open(record.store, config.dataset, w) for w in registry.lineage(version).windows if w != window_id]
    rows = Known(known).new_rows(window, None, SCHEMA.names)
    if not rows.num_rows:
        report = DriftReport(champion=version, rows=0, faults=faults, undecided="no image of it is new")
        return _filed(record, report, draw_page(report))
    classes = ModelSpec.model_validate_json(registry.read_file(version, "model.json"), extra="ignore").classes
    seen = see_window(registry, version, classes, window, rows, config)
    looks = earlier_looks(record.store, config.model, version, window)
    report = compare(version, classes, reference, seen, [look.changed for look in looks], config.drift)
    faults = (*faults, *report.faults)
    listed = report.furthest_unlabelled[: config.decision.max_to_label]
    report = report.model_copy(
        update={"faults": faults, "alarm": report.alarm and not faults, "furthest_unlabelled": listed}
    )
    report = report.model_copy(update={"previous": compare_previous(registry, report, window, config)})
    look = look_at(window, report)
    report = _filed(record, report, draw_page(report, reference, seen, [*looks, look], window))
    if not record.parameters.planning:  # a plan must change nothing that a later window is judged by
        file_look(record.store, config.model, version, look)
    return report


def _filed(record: Run, report: DriftReport, page: str) -> DriftReport:
    record.store.put(record.key(PAGE), page.encode())  # before the record: where that stands, the page does
    return report
