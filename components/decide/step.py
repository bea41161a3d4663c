"""Decide: gather the evidence of a run, apply the policy, file the plan."""

from __future__ import annotations

import json

from components.core.config import Config, LoopConfig, StrategyName, check_strategy
from components.core.contracts import Decision, DriftReport, LedgerRecord, Lineage, TrainingSummary, ValidationReport
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
    training = config.training
    loops: dict[StrategyName, LoopConfig] = {
        "head-only": training.head_only,
        "fine-tune": training.fine_tune,
        "retrain": training.retrain,
    }
    return decide(_evidence(record, config, window), config.decision, loops, training.replay_fraction)


def _evidence(record: Run, config: Config, window: str) -> Evidence:
    drift = record.need("detect_drift", DriftReport)
    registry = Registry(record.store, config.model)
    champion = registry.champion()
    # The report speaks of the champion it was made with; the plan must not mix two.
    version = drift.champion
    lineage = Lineage.model_validate_json(registry.read_file(version, "lineage.json")) if version else None
    classes = json.loads(registry.read_file(version, "model.json"))["classes"] if version else ()
    past = lineage.windows if lineage else ()
    document = Window.open(record.store, config.dataset, window).document
    return Evidence(
        validation=record.need("validate", ValidationReport),
        drift=drift,
        champion=version,
        champion_classes=tuple(classes),
        window=window,
        trained_windows=past,
        window_classes=document.class_counts,
        old_rows=sum(Window.open(record.store, config.dataset, w).document.train_rows for w in past),
        new_rows=document.train_rows,
        forced=check_strategy(record.parameters.strategy),
        images_per_second=_measured_speed(record, champion),
    )


def _measured_speed(record: Run, champion: LedgerRecord | None) -> float | None:
    """Training speed of the run that made the champion: what one more pass is likely to take."""
    if champion is None or champion.run_id is None:
        return None
    maker = Run(record.store, champion.run_id)
    speeds = [s.images_per_second for n in (3, 2, 1) if (s := maker.read(f"train-{n}", TrainingSummary))]
    return speeds[0] if speeds else None
