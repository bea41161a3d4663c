"""Decide: gather the evidence of a run, apply the policy, file the plan."""

from __future__ import annotations

import json

from components.core.config import MAX_RUNGS, Config, check_strategy
from components.core.contracts import Decision, DriftReport, TrainingSummary, ValidationReport
from components.core.recipes import StrategyName
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.windows import Window
from components.decide.policy import Evidence, decide


def run(config_path: str, run_id: str, window: str) -> Decision:
    """Decide what to do with a window."""
    record = open_run(config_path, run_id)
    return perform("decide", record, Decision, lambda: _decide(record, window))


def _decide(record: Run, window: str) -> Decision:
    config = record.config
    return decide(_evidence(record, config, window), config.decision, config.training.strategies)


def _evidence(record: Run, config: Config, window: str) -> Evidence:
    drift = record.need("detect_drift", DriftReport)
    registry = Registry(record.store, config.model)
    # The report speaks of the champion it was made with; the plan must not mix two.
    version = drift.champion
    lineage = registry.lineage(version) if version else None
    classes = json.loads(registry.read_file(version, "model.json"))["classes"] if version else ()
    trained = lineage.windows if lineage else ()
    past = tuple(w for w in trained if w != window)
    document = Window.open(record.store, config.dataset, window).document
    return Evidence(
        validation=record.need("validate", ValidationReport),
        drift=drift,
        champion=version,
        champion_classes=tuple(classes),
        old_windows=past,
        already_trained=window in trained,
        released=_release(registry, window),
        window_classes=document.class_counts,
        old_rows=sum(Window.open(record.store, config.dataset, w).document.train_rows for w in past),
        new_rows=document.train_rows,
        held_out=document.holdout_rows,
        forced=check_strategy(record.parameters.strategy, config),
        images_per_second=_measured_speeds(record, registry, version),
    )


def _release(registry: Registry, window: str) -> str | None:
    """Who released the window and why, from the ledger."""
    releases = [record for record in registry.ledger() if (record.kind, record.window) == ("release", window)]
    return f"Released from quarantine by {releases[-1].actor}: {releases[-1].reason}" if releases else None


def _measured_speeds(record: Run, registry: Registry, version: str | None) -> dict[StrategyName, float]:
    """Training speeds of the run that made the champion, by strategy: what one more pass is likely to take."""
    promotion = registry.champion()
    if promotion is None or promotion.version != version or promotion.run_id is None:
        return {}
    maker = Run(record.store, promotion.run_id)
    attempts = [maker.read(f"train-{rung}", TrainingSummary) for rung in range(1, MAX_RUNGS + 1)]
    return {attempt.strategy: attempt.images_per_second for attempt in attempts if attempt}
