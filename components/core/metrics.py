"""All metrics, of runs and of the trigger, defined once on a registry that is passed in, and how those of runs reach a
Pushgateway.

Names are `retrain_<noun>_<unit>`; labels come from closed sets, never a run id.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from threading import Thread
from typing import get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, push_to_gateway, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from components.core.claims import Result
from components.core.contracts import RunReport

logger = logging.getLogger(__name__)


PORT_VARIABLE = "RETRAIN_METRICS_PORT"  # set in the pods that train (`pipelines.runtime`); without it nothing listens
TICK_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
EVENT_RESULTS = ("accepted", "signature", "stale", "replayed", "too-large", "slow", "malformed", "no-secret")
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TrainingMetrics:
    """How a training is getting on, while it runs."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self.registry, self.model = registry, model
        self.epoch = self._gauge("epoch", "Epochs done.")
        self.loss = self._gauge("loss_value", "Mean loss of the last epoch, nats.")
        self.accuracy = self._gauge("validation_accuracy_ratio", "Accuracy on rows set aside, after the last epoch.")
        self.checkpoint = self._gauge("last_checkpoint_timestamp_seconds", "When the last checkpoint was kept.")
        self.lost = self._gauge("lost_work_seconds", "Time spent on steps that were taken again.")
        self.memory = self._gauge("gpu_memory_peak_bytes", "Most GPU memory in use so far.")
        self.world_size = self._gauge("world_size", "Processes that train together.")
        self.samples = self._counter("samples", "Images that went through the network.")
        self.resumes = self._counter("resumes", "How often it has gone on after a cut.")
        self.step_duration = Histogram(
            "retrain_train_step_duration_seconds",
            "Time from step to step.",
            ["model"],
            buckets=STEP_BUCKETS,
            registry=registry,
        ).labels(model)
        self._last = time.monotonic()
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def serve(self, port: int, address: str = "0.0.0.0") -> None:  # noqa: S104  # a pod's: Prometheus comes from outside
        """Answer /metrics on a port, from a thread. A port that is taken is logged and changes nothing else."""
        try:
            self._server, self._thread = start_http_server(port, address, self.registry)
        except OSError as error:
            logger.warning("no metrics of this training: port %d: %s", port, error)

    def stop(self) -> None:
        """Stop answering, and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def on_rows(self, rows: int) -> None:
        """A step with so many rows is done."""
        now = time.monotonic()
        self.step_duration.observe(now - self._last)
        self._last = now
        self.samples.inc(rows)

    def on_epoch(self, epochs: int, loss: float, accuracy: float | None) -> None:
        """An epoch is done."""
        self.epoch.set(epochs)
        self.loss.set(loss)
        if accuracy is not None:
            self.accuracy.set(accuracy)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"retrain_train_{name}", text, ["model"], registry=self.registry).labels(self.model)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"retrain_train_{name}", text, ["model"], registry=self.registry).labels(self.model)


def training_metrics(model: str) -> TrainingMetrics:
    """Metrics of a training, served where the environment names a port (RETRAIN_METRICS_PORT)."""
    metrics = TrainingMetrics(CollectorRegistry(), model)
    if port := os.environ.get(PORT_VARIABLE):
        metrics.serve(int(port))
    return metrics


class RunMetrics:
    """Gauges that tell how the last run of a model went."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.info = self._gauge("run_info", "The last run: always 1.", "action", "strategy", "outcome")
        self.success = self._gauge("run_success", "1 if the last run ended as planned, 0 if a step crashed.")
        self.start = self._gauge("run_last_start_timestamp_seconds", "When the last run began.")
        self.duration = self._gauge("run_duration_seconds", "How long the last run took.")
        self.attempts = self._gauge("run_attempts", "Training attempts of the last run.")
        self.step = self._gauge("step_duration_seconds", "How long a step of the last run took.", "step", "rung")
        self.accuracy = self._gauge("eval_accuracy_ratio", "Accuracy of a model on a holdout.", "role", "holdout")
        self.drift_accuracy = self._gauge(
            "drift_accuracy_ratio", "Champion's accuracy on its reference sample and on the whole window.", "sample"
        )
        self.drift_p_value = self._gauge("drift_p_value_ratio", "p-value of the drift test, all views together.")
        self.drift_alarm = self._gauge("drift_alarm", "1 if enough of the last windows drifted, 0 if not.")
        self.drift_drop = self._gauge("drift_estimated_drop_ratio", "Accuracy lost, as estimated without labels.")
        self.labels_wanted = self._gauge(
            "labels_wanted_images", "Images that should be labelled before anything is learnt from them; 0: none."
        )
        for gauge in (self.drift_p_value, self.drift_alarm, self.drift_drop):
            gauge.set(float("nan"))  # not measured, which is not 0
        self.champion = self._gauge("champion_info", "The champion after the last run: always 1.", "version")

    def observe(self, report: RunReport) -> None:
        """Set every gauge from a run's report."""
        self.info.labels(report.action or "none", report.strategy or "none", report.outcome).set(1)
        self.success.set(report.outcome != "failed")
        self.start.set(report.started.timestamp())
        self.duration.set(report.seconds)
        self.attempts.set(report.attempts)
        for name, seconds in report.step_seconds.items():
            step, _, rung = name.partition("-")
            self.step.labels(step, rung).set(seconds)
        for role in ("champion", "challenger"):
            for holdout in ("old", "new"):
                if (value := getattr(report.accuracy, f"{role}_{holdout}")) is not None:
                    self.accuracy.labels(role, holdout).set(value)
        for sample, value in (("reference", report.reference_accuracy), ("window", report.window_accuracy)):
            if value is not None:
                self.drift_accuracy.labels(sample).set(value)
        self.labels_wanted.set(report.labels_wanted)
        drift = (
            (self.drift_p_value, report.drift_p_value),
            (self.drift_alarm, report.drift_alarm),
            (self.drift_drop, report.estimated_drop),
        )
        for gauge, value in drift:
            if value is not None:
                gauge.set(value)
        if report.champion_after:
            self.champion.labels(report.champion_after).set(1)

    def push(self, gateway: str, model: str, timeout_seconds: float) -> None:
        """Replace this model's group on a Pushgateway. A push that fails is logged and changes nothing else."""
        try:
            push_to_gateway(
                gateway, job="retrain", grouping_key={"model": model}, registry=self.registry, timeout=timeout_seconds
            )
        except (OSError, ValueError, HTTPException) as error:  # no answer, no address, no gateway
            logger.warning("metrics were not pushed to %s: %s", gateway, error)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"retrain_{name}", text, labels, registry=self.registry)


class LoggedRuns(Collector):
    """Counters that the log of claims holds: they survive a restart, and all replicas say the same."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._ended: Mapping[Result, int] = {}
        self._taken = 0

    def observe(self, ended: Mapping[Result, int], taken: int) -> None:
        """Take over what the log says: runs that ended by result, and deliveries that were taken."""
        self._ended, self._taken = dict(ended), taken

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        runs = CounterMetricFamily(
            "retrain_trigger_runs", "Runs of claims that ended, by result.", labels=["model", "result"]
        )
        for result in get_args(Result):
            runs.add_metric([self._model, result], self._ended.get(result, 0))
        yield runs
        taken = CounterMetricFamily(
            "retrain_trigger_deliveries_taken", "Deliveries that a run has taken.", labels=["model"]
        )
        taken.add_metric([self._model], self._taken)
        yield taken


class TriggerMetrics:
    """How the trigger is getting on."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self.registry, self.model = registry, model
        self.runs = LoggedRuns(model)
        registry.register(self.runs)
        self.deliveries = self._gauge(
            "deliveries", "Deliveries that no run has taken: complete or incomplete.", "state"
        )
        self.oldest = self._gauge("oldest_wait_seconds", "How long the oldest complete delivery has waited; 0: none.")
        self.active = self._gauge(
            "run_active", "1 while a claim is open: its run is started, at work, or tried again; 0 else."
        )
        self.paused = self._gauge("paused", "1 while no run is started because too many failed in a row, 0 else.")
        self.failures = self._gauge("consecutive_failures", "Runs that failed since the last one that ended well.")
        self.last_tick = self._gauge("last_tick_timestamp_seconds", "When it last looked and all went well.")
        self.tick_errors = Counter(
            "retrain_trigger_tick_errors", "Looks at which something went wrong.", ["model"], registry=registry
        ).labels(model)
        self.tick_duration = Histogram(
            "retrain_trigger_tick_duration_seconds",
            "How long a look takes, with all that it leads to.",
            ["model"],
            buckets=TICK_BUCKETS,
            registry=registry,
        ).labels(model)
        self.events = Counter(
            "retrain_trigger_events",
            "Events that arrived: accepted, or why they were refused.",
            ["model", "result"],
            registry=registry,
        )
        for result in EVENT_RESULTS:
            self.events.labels(model, result)

    def on_event(self, result: str) -> None:
        """An event arrived and was accepted, or refused for a reason of `EVENT_RESULTS`."""
        self.events.labels(self.model, result).inc()

    def on_tick(self, seconds: float, *, went_well: bool) -> None:
        """A look is over."""
        self.tick_duration.observe(seconds)
        if went_well:
            self.last_tick.labels(self.model).set_to_current_time()
        else:
            self.tick_errors.inc()

    def on_look(self, complete: Mapping[str, float], incomplete: int, *, paused: bool) -> None:
        """A look showed complete deliveries, each with the seconds it has waited, and incomplete ones."""
        self.deliveries.labels(self.model, "complete").set(len(complete))
        self.deliveries.labels(self.model, "incomplete").set(incomplete)
        self.oldest.labels(self.model).set(max(complete.values(), default=0.0))
        self.paused.labels(self.model).set(paused)

    def on_log(self, ended: Mapping[Result, int], taken: int, *, active: bool, failures: int) -> None:
        """The log of claims says so."""
        self.runs.observe(ended, taken)
        self.active.labels(self.model).set(active)
        self.failures.labels(self.model).set(failures)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"retrain_trigger_{name}", text, ["model", *labels], registry=self.registry)
