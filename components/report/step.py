"""Report: summarise the run record, render the page, push metrics. Runs after success and after a failed step."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from html import escape

from prometheus_client import CollectorRegistry, generate_latest

from components.core.claims import ClaimLog
from components.core.contracts import Outcome, RunReport
from components.core.errors import RetrainError
from components.core.events import announce
from components.core.metrics import RunMetrics
from components.core.registry import Registry
from components.core.run_claims import end_claim
from components.core.runs import Run, StepRecord, open_run
from components.report.summary import summarise

logger = logging.getLogger(__name__)


def run(config_path: str, run_id: str, state: str) -> tuple[RunReport, str]:
    """Tell how a run ended.

    Args:
        config_path: The configuration file.
        run_id: The run.
        state: What the engine says of it: SUCCEEDED locally, COMPLETE on a cluster, FAILED, or RUNNING where a pod was
            lost. Only logged: the run record knows better.

    Returns:
        The report, and the page as HTML.
    """
    record = open_run(config_path, run_id)
    logger.info("report: the engine says %s (run %s)", state, run_id)
    report = tell(record)
    page = _page(record, report)
    record.store.put(record.key("report.html"), page.encode())
    logger.info("report: %s", report.sentence)
    return report, page


def tell(record: Run) -> RunReport:
    """File and push a run's row and metrics, and announce what it did to the model, from its other records: again where
    those have changed since."""
    started, clock = datetime.now(UTC), time.monotonic()
    report = summarise(record, ended=True)
    # Derived, so replaced: a run that is retried from the UI, or approved, is told anew.
    record.replace(StepRecord(step="report", started=started, seconds=time.monotonic() - clock, document=report))
    _tell_metrics(record, report)
    outcome = record.read("outcome", Outcome)
    events = record.config.events
    if (events.webhook or events.mlflow) and outcome and outcome.ledger_number:
        announce(record.config, Registry(record.store, report.model).record(outcome.ledger_number))
    try:
        end_claim(ClaimLog(record.store, report.model), record, succeeded=report.outcome != "failed")
    except RetrainError:  # the trigger asks the engine: a broken log must not fail a run that promoted
        logger.exception("the claim of this run was not closed")
    return report


def _page(record: Run, report: RunReport) -> str:
    """The page, or the reason why it cannot be drawn: pictures must not fail a run that promoted."""
    from components.report.page import render_page

    try:
        return render_page([record])
    except RetrainError as error:
        logger.warning("report: the page cannot be drawn: %s", error)
        return f"<!doctype html><p>{escape(report.sentence)}<p>The page cannot be drawn: {escape(str(error))}"


def _tell_metrics(record: Run, report: RunReport) -> None:
    metrics = RunMetrics(CollectorRegistry())
    metrics.observe(report)
    record.store.put(record.key("metrics.prom"), generate_latest(metrics.registry))
    config = record.config.report
    if config.pushgateway:
        metrics.push(config.pushgateway, report.model, config.push_timeout_seconds)
