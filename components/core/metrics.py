"""All metrics of a run, defined once on a registry that is passed in, and how they reach a Pushgateway.

Names are `retrain_<noun>_<unit>`; labels come from closed sets, never a run id. Not covered: what the trigger counts.
"""

from __future__ import annotations

import logging
from http.client import HTTPException

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from components.core.contracts import RunReport

logger = logging.getLogger(__name__)


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
