"""Report: summarise the run record, render the page, push metrics. Runs after success and after a failed step."""

from __future__ import annotations

import logging

from prometheus_client import CollectorRegistry, generate_latest

from components.core.contracts import RunReport
from components.core.metrics import RunMetrics
from components.core.runs import Run, open_run, perform
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
    from components.report.page import render_page

    record = open_run(config_path, run_id)
    logger.info("report: the engine says %s", state)
    report = perform("report", record, RunReport, lambda: _report(record))
    page = render_page([record])
    record.store.put(record.key("report.html"), page.encode())
    return report, page


def _report(record: Run) -> RunReport:
    report = summarise(record)
    metrics = RunMetrics(CollectorRegistry())
    metrics.observe(report)
    record.store.put(record.key("metrics.prom"), generate_latest(metrics.registry))
    config = record.config.report
    if config.pushgateway:
        metrics.push(config.pushgateway, report.model, config.push_timeout_seconds)
    return report
