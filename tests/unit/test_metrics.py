"""The metrics of a run: their names, their labels, their values, and that a push can only be logged."""

import logging
import math
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Thread

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from components.core.contracts import Accuracies, RunReport
from components.core.metrics import RunMetrics

REPORT = RunReport(
    run_id="run-7",
    model="classifier",
    source="delivery",
    started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    seconds=12.5,
    window="w1",
    drift="drifted",
    action="train",
    strategy="fine-tune",
    reason="because",
    verdict="promote",
    outcome="promoted",
    champion_before="v1",
    champion_after="v2",
    accuracy=Accuracies(champion_old=0.9, challenger_old=0.8, champion_new=0.5, challenger_new=0.95),
    reference_accuracy=0.85,
    window_accuracy=0.45,
    drift_p_value=0.001,
    drift_alarm=True,
    estimated_drop=0.375,
    attempts=2,
    step_seconds={"ingest": 1.0, "detect_drift": 2.0, "train-1": 7.0, "train-2": 9.0},
)
EMPTY = RunReport(
    run_id="run-8",
    model="classifier",
    source="delivery",
    started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    seconds=0.0,
    reason="a crash",
    outcome="failed",
    champion_before=None,
    champion_after=None,
)


def observed(report: RunReport) -> RunMetrics:
    metrics = RunMetrics(CollectorRegistry())
    metrics.observe(report)
    return metrics


def value(metrics: RunMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_name_starts_with_the_products() -> None:
    names = [metric.name for metric in RunMetrics(CollectorRegistry()).registry.collect()]
    assert len(names) == 13
    assert all(name.startswith("retrain_") for name in names)


def test_every_metric_says_what_it_is() -> None:
    assert all(len(metric.documentation) > 10 for metric in RunMetrics(CollectorRegistry()).registry.collect())


@pytest.mark.parametrize("report", [REPORT, EMPTY], ids=["promoted", "failed"])
def test_no_label_is_a_run_id(report: RunReport) -> None:
    """Every run would add a series of its own, and none would ever end."""
    samples = [sample for metric in observed(report).registry.collect() for sample in metric.samples]
    assert samples
    for sample in samples:
        assert "run_id" not in sample.labels
        assert report.run_id not in sample.labels.values()


def test_gauges_hold_what_the_report_says() -> None:
    metrics = observed(REPORT)
    info = {"action": "train", "strategy": "fine-tune", "outcome": "promoted"}
    assert value(metrics, "retrain_run_info", **info) == 1
    assert value(metrics, "retrain_run_success") == 1
    assert value(metrics, "retrain_run_last_start_timestamp_seconds") == REPORT.started.timestamp()
    assert value(metrics, "retrain_run_duration_seconds") == 12.5
    assert value(metrics, "retrain_run_attempts") == 2
    assert value(metrics, "retrain_step_duration_seconds", step="ingest", rung="") == 1.0
    assert value(metrics, "retrain_step_duration_seconds", step="detect_drift", rung="") == 2.0
    assert value(metrics, "retrain_step_duration_seconds", step="train", rung="1") == 7.0
    assert value(metrics, "retrain_step_duration_seconds", step="train", rung="2") == 9.0
    assert value(metrics, "retrain_eval_accuracy_ratio", role="challenger", holdout="old") == 0.8
    assert value(metrics, "retrain_eval_accuracy_ratio", role="challenger", holdout="new") == 0.95
    assert value(metrics, "retrain_eval_accuracy_ratio", role="champion", holdout="old") == 0.9
    assert value(metrics, "retrain_eval_accuracy_ratio", role="champion", holdout="new") == 0.5
    assert value(metrics, "retrain_drift_accuracy_ratio", sample="reference") == 0.85
    assert value(metrics, "retrain_drift_accuracy_ratio", sample="window") == 0.45
    assert value(metrics, "retrain_drift_p_value_ratio") == 0.001
    assert value(metrics, "retrain_drift_alarm") == 1
    assert value(metrics, "retrain_drift_estimated_drop_ratio") == 0.375
    assert value(metrics, "retrain_champion_info", version="v2") == 1
    assert value(metrics, "retrain_labels_wanted_images") == 0


def test_wanted_labels_are_counted() -> None:
    metrics = observed(REPORT.model_copy(update={"labels_wanted": 40, "to_label": "runs/r/to_label.csv"}))
    assert value(metrics, "retrain_labels_wanted_images") == 40


def test_a_failed_run_is_no_success_and_has_no_champion() -> None:
    metrics = observed(EMPTY)
    info = {"action": "none", "strategy": "none", "outcome": "failed"}
    assert value(metrics, "retrain_run_info", **info) == 1
    assert value(metrics, "retrain_run_success") == 0
    families = {family.name: family.samples for family in metrics.registry.collect()}
    assert families["retrain_champion_info"] == []
    assert families["retrain_eval_accuracy_ratio"] == []
    assert families["retrain_drift_accuracy_ratio"] == []


def test_an_accuracy_of_zero_is_a_measurement() -> None:
    nothing = Accuracies(champion_new=0.0)
    metrics = observed(REPORT.model_copy(update={"accuracy": nothing, "window_accuracy": 0.0}))
    assert value(metrics, "retrain_eval_accuracy_ratio", role="champion", holdout="new") == 0.0
    assert value(metrics, "retrain_eval_accuracy_ratio", role="challenger", holdout="new") is None
    assert value(metrics, "retrain_drift_accuracy_ratio", sample="window") == 0.0


def test_drift_that_was_not_measured_is_no_number() -> None:
    for name in ("retrain_drift_p_value_ratio", "retrain_drift_alarm", "retrain_drift_estimated_drop_ratio"):
        measured = value(observed(EMPTY), name)
        assert measured is None or math.isnan(measured)


def test_no_alarm_and_no_drop_are_measurements() -> None:
    quiet = observed(REPORT.model_copy(update={"drift_alarm": False, "estimated_drop": 0.0, "drift_p_value": 1.0}))
    assert value(quiet, "retrain_drift_alarm") == 0
    assert value(quiet, "retrain_drift_estimated_drop_ratio") == 0
    assert value(quiet, "retrain_drift_p_value_ratio") == 1


@pytest.mark.parametrize("outcome", ["promoted", "waiting", "skipped", "quarantined", "rejected", "held"])
def test_every_planned_end_is_a_success(outcome: str) -> None:
    assert value(observed(REPORT.model_copy(update={"outcome": outcome})), "retrain_run_success") == 1


def test_the_exposition_can_be_parsed_back() -> None:
    hostile = REPORT.model_copy(update={"champion_after": 'v"2\n\\'})
    families = list(text_string_to_metric_families(generate_latest(observed(hostile).registry).decode()))
    assert len(families) == 13
    versions = [s.labels["version"] for f in families for s in f.samples if "version" in s.labels]
    assert versions == ['v"2\n\\']


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_push_to_a_closed_port_is_only_logged(closed_port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        observed(REPORT).push(f"127.0.0.1:{closed_port}", "classifier", 2.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"127.0.0.1:{closed_port}" in caplog.text


@pytest.mark.parametrize("gateway", ["push gateway:9091", "http://gateway:port", "http://[gateway:9091"])
def test_a_push_to_an_address_that_is_none_is_only_logged(gateway: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        observed(REPORT).push(gateway, "classifier", 2.0)
    assert gateway in caplog.text


@pytest.fixture
def babbler() -> Iterator[int]:
    """A server that does not speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = Thread(target=answer)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join()


def test_a_push_to_something_that_is_no_gateway_is_only_logged(babbler: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        observed(REPORT).push(f"127.0.0.1:{babbler}", "classifier", 2.0)
    assert f"127.0.0.1:{babbler}" in caplog.text
