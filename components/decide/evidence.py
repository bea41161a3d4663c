"""Gather the evidence of a run: what the steps before found, the champion, what run records and ledger remember.

What is not there is left out and said (`Evidence.missing`). Not covered: what follows from it (`policy`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from components.core.config import MAX_RUNGS, Config, check_strategy
from components.core.contracts import DriftReport, Evaluation, LedgerRecord, TrainingSummary, ValidationReport
from components.core.errors import IntegrityError
from components.core.plans import Decision, Evidence, PastGain, PastTraining
from components.core.registry import EXEMPLARS, FISHER, Registry
from components.core.runs import Run, list_runs
from components.core.windows import Window, from_parquet
from components.decide.costs import training_work
from components.decide.situation import describe_situation

LONGEST_CHAIN = 100  # versions looked back through for the last full retrain


def gather_evidence(record: Run, window_id: str) -> Evidence:
    """Read all that the policy looks at.

    Raises:
        IntegrityError: The champion, its windows or the ledger are not what was written.
        ConfigurationError: The strategy asked for does not exist, or an earlier step has not run.
    """
    config, registry = record.config, Registry(record.store, record.config.model)
    window = Window.open(record.store, config.dataset, window_id).document
    drift, validation = record.need("detect_drift", DriftReport), record.need("validate", ValidationReport)
    champion = _champion(record, registry, drift.champion, window_id)
    history = _history(record, config)
    evidence = Evidence(
        window=window_id,
        window_created=window.created.date(),
        new_rows=window.train_rows,
        held_out=window.holdout_rows,
        window_classes=window.class_counts,
        released=_release(registry, window_id),
        invalid=tuple(failure.sentence for failure in validation.failures),
        faults=tuple(fault.sentence for fault in drift.faults),
        drifted=drift.drifted,
        change=drift.change,
        effects={view.name: view.effect for view in drift.views},
        alarm=drift.alarm,
        drop=drift.accuracy_drop,
        drop_interval=drift.accuracy_drop_interval,
        estimated_drop=drift.estimated_drop,
        estimated_drop_interval=drift.estimated_drop_interval,
        drift_sentence=drift.sentence,
        image_size=config.training.image_size,
        forced=check_strategy(record.parameters.strategy, config),
        device=history.last.device if history.last else None,
        processor=history.last.processor if history.last else None,
        gpus=history.last.gpus if history.last else 0,
        trainings=history.trainings,
        gains=history.gains,
        **champion,
    )
    return evidence.model_copy(update={"missing": (*_what_is_missing(evidence), *history.unreadable)})


def _champion(record: Run, registry: Registry, version: str | None, window: str) -> dict[str, object]:
    """Fields about the champion that the drift report speaks of: the plan must not mix two."""
    if version is None:
        return {"champion": None}
    model, files = json.loads(registry.read_file(version, "model.json")), registry.manifest(version).files
    windows = registry.lineage(version).windows
    past = tuple(name for name in windows if name != window)
    documents = [Window.open(record.store, record.config.dataset, name).document for name in past]
    classes: Counter[str] = Counter()
    for document in documents:
        classes.update(document.class_counts)
    return {
        "champion": version,
        "champion_classes": tuple(model["classes"]),
        "champion_image_size": model["image_size"],
        "old_windows": past,
        "old_rows": sum(document.train_rows for document in documents),
        "old_classes": dict(classes),
        "already_trained": window in windows,
        "exemplars": _remembered(registry, version) if EXEMPLARS in files else None,
        "has_fisher": FISHER in files,
        **_since_full_retrain(record, registry, version),
    }


def _remembered(registry: Registry, version: str) -> int:
    """How many exemplars a version has."""
    rows: int = from_parquet(registry.read_file(version, EXEMPLARS), ("label",)).num_rows
    return rows


def _since_full_retrain(record: Run, registry: Registry, version: str) -> dict[str, object]:
    """When the model was last trained from scratch, and what happened to its old holdouts since."""
    promoted = {entry.version: entry for entry in registry.ledger() if entry.makes_champion}
    lost: float | None = 0.0
    for count, (name, fresh) in enumerate(islice(_ancestors(registry, version), LONGEST_CHAIN)):
        entry = promoted.get(name)
        if fresh:
            day = entry.created.date() if entry else None
            return {"retrained": day, "windows_since": count, "forgotten": lost if count else None}
        change = _old_change(record, entry)
        lost = None if lost is None or change is None else lost - change
    return {"forgotten": lost}


def _ancestors(registry: Registry, version: str | None) -> Iterator[tuple[str, bool]]:
    """A version and those before it, the newest first, and whether each was trained from scratch."""
    while version is not None:
        lineage = registry.lineage(version)
        yield version, lineage.hyperparameters.start == "fresh"
        version = lineage.parent


def _old_change(record: Run, entry: LedgerRecord | None) -> float | None:
    """By how much a promotion changed the accuracy on its old holdout, as its run measured it."""
    if entry is None or entry.run_id is None:
        return None
    run = Run(record.store, entry.run_id)
    for rung in range(1, MAX_RUNGS + 1):
        evaluation = run.read(f"evaluate-{rung}", Evaluation)
        if evaluation and evaluation.challenger == entry.version:
            return evaluation.old_gain
    return None


@dataclass(frozen=True, kw_only=True)
class _History:
    last: TrainingSummary | None
    trainings: tuple[PastTraining, ...]
    gains: tuple[PastGain, ...]
    unreadable: tuple[str, ...]


def _history(record: Run, config: Config) -> _History:
    """What the last runs of the model trained, how long it took, and what it brought."""
    trainings: list[PastTraining] = []
    gains: list[PastGain] = []
    unreadable: list[str] = []
    last: TrainingSummary | None = None
    runs = [run for run in list_runs(record.store) if run.run_id != record.run_id]
    for run in runs[-config.decision.history_runs :] if config.decision.history_runs else []:
        try:
            if run.parameters.model != config.model or (plan := run.read("decide", Decision)) is None:
                continue
            for number, rung in enumerate(plan.rungs, start=1):
                summary = run.read(f"train-{number}", TrainingSummary)
                if summary is None:
                    continue
                last = summary
                work = training_work(rung.hyperparameters, summary.rows, config.training.fisher_rows)
                trainings.append(
                    PastTraining(strategy=rung.strategy, device=summary.device, work=work, seconds=summary.seconds)
                )
                evaluation = run.read(f"evaluate-{number}", Evaluation)
                if evaluation and evaluation.new_gain is not None and plan.evidence:
                    situation = describe_situation(plan.evidence, config.decision)
                    old, new = evaluation.old_gain, evaluation.new_gain
                    gains.append(PastGain(strategy=rung.strategy, situation=situation, old=old, new=new))
        except IntegrityError as error:
            unreadable.append(f"Run {run.run_id} cannot be read: {error.found}.")
    return _History(last=last, trainings=tuple(trainings), gains=tuple(gains), unreadable=tuple(unreadable))


def _release(registry: Registry, window: str) -> str | None:
    """Who released the window and why, from the ledger."""
    releases = [record for record in registry.ledger() if (record.kind, record.window) == ("release", window)]
    return f"Released from quarantine by {releases[-1].actor}: {releases[-1].reason}" if releases else None


def _what_is_missing(evidence: Evidence) -> Iterator[str]:
    """Why parts of the plan will be unknown."""
    if not evidence.trainings:
        yield "No training is on record: what this one will take is not known."
    if evidence.champion is None:
        return
    if evidence.drop is None:
        yield "No image of a class that the champion knows has a label yet: its loss of accuracy is not measured."
        if evidence.estimated_drop is None:
            yield "Nor is it estimated: the champion's reference has no rehearsed changes."
    if evidence.exemplars is None:
        yield "The champion's version keeps no exemplars: all old training rows are drawn from."
    if evidence.windows_since is None:
        yield f"No full retrain among the last {LONGEST_CHAIN} versions: when there was one is not known."
    elif evidence.windows_since and evidence.forgotten is None:
        yield "Not every promotion since the last full retrain was measured on an old holdout: no sum of what was lost."
