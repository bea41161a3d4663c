"""Metrics of a training while it runs: what is counted, and that they can be scraped."""

from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from components.core.metrics import PORT_VARIABLE, TrainingMetrics, training_metrics


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_steps_and_epochs_are_told() -> None:
    registry = CollectorRegistry()
    metrics = TrainingMetrics(registry, "digits")
    metrics.on_rows(64)
    metrics.on_rows(60)
    metrics.on_epoch(1, 0.25, 0.9)

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"retrain_train_{name}", {"model": "digits"})

    assert (value("samples_total"), value("step_duration_seconds_count")) == (124, 2)
    assert (value("epoch"), value("loss_value"), value("validation_accuracy_ratio")) == (1, 0.25, 0.9)


def test_an_epoch_without_rows_set_aside_leaves_the_accuracy() -> None:
    registry = CollectorRegistry()
    TrainingMetrics(registry, "digits").on_epoch(3, 0.5, None)
    assert registry.get_sample_value("retrain_train_validation_accuracy_ratio", {"model": "digits"}) == 0
    assert registry.get_sample_value("retrain_train_epoch", {"model": "digits"}) == 3


def test_metrics_can_be_scraped() -> None:
    port, metrics = free_port(), TrainingMetrics(CollectorRegistry(), "digits")
    metrics.serve(port, "127.0.0.1")
    metrics.on_rows(7)
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        metrics.stop()
    assert 'retrain_train_samples_total{model="digits"} 7.0' in text


def test_nothing_listens_where_no_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    metrics = training_metrics("digits")
    metrics.stop()
    assert b"retrain_train_world_size" in generate_latest(metrics.registry)


def test_a_port_that_is_taken_is_told_and_harmless(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(PORT_VARIABLE, str(taken.getsockname()[1]))
        training_metrics("digits").on_rows(1)
    assert "no metrics of this training: port" in caplog.text
