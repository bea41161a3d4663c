"""Gather the evidence of a run: what the steps before found, the champion, what run records and ledger remember.

What is not there is left out and said (`Evidence.missing`). Not covered: what follows from it (`policy`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from components.core.config import check_strategy
from components.core.contracts import DriftReport, LedgerRecord, ValidationReport
from components.core.plans import Evidence
from components.core.registry import EXEMPLARS, FISHER, LONGEST_CHAIN, Registry
from components.core.runs import Run
from components.core.succession import promotion_of, read_succession
from components.core.windows import Window, from_parquet
from components.decide.history import read_history, since_full_retrain
from components.decide.labelling import LIST, least_held_out


def gather_evidence(record: Run, window_id: str) -> Evidence:
    """Read all that the policy looks at.

    Raises:
        IntegrityError: The champion, its windows or the ledger are not what was written.
        ConfigurationError: The strategy asked for does not exist, or an earlier step has not run.
    """
    config, registry = record.config, Registry(record.store, record.config.model)
    window = Window.open(record.store, config.dataset, window_id).document
    drift, validation = record.need("detect_drift", DriftReport), record.need("validate", ValidationReport)
    ledger = registry.ledger()
    champion = _champion(record, registry, ledger, drift.champion, window_id)
    history = read_history(record, drift.champion)
    evidence = Evidence(
        window=window_id,
        window_created=window.created.date(),
        new_rows=window.train_rows,
        held_out=window.holdout_rows,
        window_classes=window.class_counts,
        unlabelled=drift.unlabelled,
        least_labelled=config.validation.min_images,
        least_held_out=least_held_out(config.gate),
        released=_release(ledger, window_id),
        rolled_back=_rollback(ledger, window_id),
        invalid=tuple(failure.sentence for failure in validation.failures),
        faults=tuple(fault.sentence for fault in drift.faults),
        drifted=drift.drifted,
        change=drift.change,
        effects={view.name: view.effect for view in drift.views},
        moved_classes=tuple(moved.name for moved in drift.moved_classes),
        undecided=drift.undecided,
        alarm=drift.alarm,
        drop=drift.accuracy_drop,
        drop_interval=drift.accuracy_drop_interval,
        reference_accuracy=drift.reference_accuracy,
        window_accuracy=drift.window_accuracy,
        estimated_drop=drift.estimated_drop,
        estimated_drop_interval=drift.estimated_drop_interval,
        drift_sentence=drift.sentence,
        image_size=config.training.image_size,
        forced=check_strategy(record.parameters.strategy, config),
        device=history.latest.device if history.latest else None,
        processor=history.latest.processor if history.latest else None,
        gpus=history.latest.gpus if history.latest else 0,
        trainings=history.trainings,
        gains=history.gains,
        retrained_in_vain=history.retrained_in_vain,
        **champion,
    )
    untold = [f"Whether the images changed cannot be told: {drift.undecided}."] if drift.undecided else []
    missing = (*_what_is_missing(evidence), *untold, *history.unreadable)
    label_list = record.key(LIST) if evidence.lacks_labels else None
    return evidence.model_copy(update={"missing": missing, "label_list": label_list})


def _champion(
    record: Run, registry: Registry, ledger: Sequence[LedgerRecord], version: str | None, window: str
) -> dict[str, object]:
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
        **since_full_retrain(record, registry, ledger, version),
    }


def _remembered(registry: Registry, version: str) -> int:
    """How many exemplars a version has."""
    rows: int = from_parquet(registry.read_file(version, EXEMPLARS), ("label",)).num_rows
    return rows


def _release(ledger: Sequence[LedgerRecord], window: str) -> str | None:
    """Who released the window and why, from the ledger."""
    releases = [record for record in ledger if (record.kind, record.window) == ("release", window)]
    return f"Released from quarantine by {releases[-1].actor}: {releases[-1].reason}" if releases else None


def _rollback(ledger: Sequence[LedgerRecord], window: str) -> str | None:
    """Who rolled back from a version that was promoted for the window and why, from the ledger."""
    for version, rollback in read_succession(ledger).undone.items():
        promotion = promotion_of(ledger, version)
        if promotion and promotion.window == window:
            return f"Version {version[:12]}, trained on it, was rolled back from by {rollback.actor}: {rollback.reason}"
    return None


def _what_is_missing(evidence: Evidence) -> Iterator[str]:
    """Why parts of the plan will be unknown."""
    if not evidence.trainings:
        yield "No training is on record: what this one will take is not known."
    if evidence.champion is None:
        return
    if evidence.drop is None:
        yield "No image of a class that the champion knows has a label yet: its loss of accuracy is not measured."
        if evidence.estimated_drop is None:
            yield "Nor is it estimated: too few images, or no changes were rehearsed when the champion was made."
    if evidence.exemplars is None:
        yield "The champion's version keeps no exemplars: all old training rows are drawn from."
    if evidence.windows_since is None:
        yield f"No full retrain is found among the last {LONGEST_CHAIN} versions: when there was one is not known."
    elif evidence.windows_since and evidence.forgotten is None:
        yield "The champion was not compared with the last version trained from scratch: what it forgot is not known."
