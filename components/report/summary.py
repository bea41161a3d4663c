"""Gather a run's records into one report row. Reads the run record only."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from components.core.config import MAX_RUNGS
from components.core.contracts import (
    Accuracies,
    DriftReport,
    Evaluation,
    Outcome,
    RunReport,
    StepDocument,
    TrainingSummary,
    ValidationReport,
    Verdict,
    WindowDocument,
)
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.rematches import judgement_name, last_judgement, list_verdicts
from components.core.runs import Run, StepRecord

JUDGEMENT: dict[str, type[StepDocument]] = {"evaluate": Evaluation, "gate": Verdict}
BEFORE: dict[str, type[StepDocument]] = {
    "ingest": WindowDocument,
    "validate": ValidationReport,
    "detect_drift": DriftReport,
    "decide": Decision,
}


def read_steps(run: Run) -> dict[str, StepRecord[StepDocument]]:
    """Every step that left a record, in the order of the graph."""
    return {step: record for step, kind in _steps(run) if (record := run.record(step, kind))}


def _steps(run: Run) -> Iterator[tuple[str, type[StepDocument]]]:
    """The names that steps may have filed under, and what."""
    yield from BEFORE.items()
    for rung in range(1, MAX_RUNGS + 1):
        yield f"train-{rung}", TrainingSummary
        for rematch in range(max(1, len(list_verdicts(run, rung)))):
            yield from ((f"{step}-{judgement_name(rung, rematch)}", kind) for step, kind in JUDGEMENT.items())
    yield "outcome", Outcome


def summarise(run: Run, *, ended: bool) -> RunReport:
    """Tell a run in one row.

    Args:
        run: Its records.
        ended: Whether the engine says that no step will run any more. A run without an outcome then failed: the reason
            is the failure that a step filed, or that none was (its pod was lost: then the log has it).
    """
    parameters, steps = run.parameters, read_steps(run)
    times = [(r.started, r.seconds) for r in steps.values()]
    started = min((t for t, _ in times), default=datetime.now(UTC))
    end = max((t.timestamp() + s for t, s in times), default=started.timestamp())
    window, drift = run.read("ingest", WindowDocument), run.read("detect_drift", DriftReport)
    decision, outcome = run.read("decide", Decision), run.read("outcome", Outcome)
    attempts = [n for n in range(1, MAX_RUNGS + 1) if f"train-{n}" in steps]
    last = attempts[-1] if attempts else 0
    evaluation, verdict = last_judgement(run, last)
    trained = run.read(f"train-{last}", TrainingSummary)
    word: str
    if outcome:
        word, reason = outcome.outcome, decision.reasons[0] if decision else outcome.reason
        if word in ("rejected", "held", "waiting"):
            reason = f"{reason} But: {outcome.reason}"
        before, after = outcome.champion_before, outcome.champion_after
    else:
        failures = [failure for failure in run.failures() if failure.step != "report"]
        word = "failed" if ended or failures else "unfinished"
        lost = "its pod was lost, and its log has the reason." if ended else "it is running, or its pod was lost."
        reason = failures[0].sentence if failures else f"No step filed an outcome: {lost}"
        champion = Registry(run.store, parameters.model).champion()
        before = after = champion.version if champion else None
    return RunReport(
        run_id=run.run_id,
        model=parameters.model,
        source=run.told_source,
        started=started,
        seconds=end - started.timestamp(),
        window=window.id if window else None,
        drift=drift.word if drift else None,
        action=decision.action if decision else None,
        rule=decision.rule if decision else None,
        strategy=trained.strategy if trained else None,
        reason=reason,
        verdict=verdict.verdict if verdict else None,
        outcome=word,
        champion_before=before,
        champion_after=after,
        accuracy=evaluation.accuracies if evaluation else Accuracies(),
        reference_accuracy=drift.reference_accuracy if drift else None,
        window_accuracy=drift.window_accuracy if drift else None,
        drift_p_value=drift.p_value if drift else None,
        drift_alarm=drift.alarm if drift and drift.p_value is not None else None,
        estimated_drop=drift.estimated_drop if drift else None,
        labels_wanted=decision.labels_wanted if decision else 0,
        to_label=decision.evidence.label_list if decision and decision.evidence and decision.labels_wanted else None,
        regression=drift.regression if drift and before == after else None,
        attempts=len(attempts),
        step_seconds={step: record.seconds for step, record in steps.items()},
    )
