"""What is remembered of a model: what its trainings took and brought, and when it was last trained from scratch.

A record that cannot be read is left out, and said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from components.core.config import MAX_RUNGS
from components.core.contracts import Evaluation, Interval, LedgerRecord, PairedOutcome, TrainingSummary
from components.core.errors import IntegrityError
from components.core.plans import Decision, PastGain, PastTraining
from components.core.registry import Registry
from components.core.runs import Run, list_runs
from components.decide.costs import training_work
from components.decide.situation import describe_situation

_NOTHING = {"forgotten": 0.0, "forgotten_interval": Interval(lower=0.0, upper=0.0)}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class History:
    """Trainings and gains of the last runs, the latest last; `latest` is the last training, `unreadable` tells of runs
    that were left out, and `retrained_in_vain` whether the champion was retrained from scratch and stayed all the same.
    """

    latest: TrainingSummary | None
    trainings: tuple[PastTraining, ...]
    gains: tuple[PastGain, ...]
    retrained_in_vain: bool
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Rung:
    """A rung that was trained: `training` is None where it was cut off, which makes its time another one's."""

    champion: str | None
    fresh: bool
    summary: TrainingSummary
    training: PastTraining | None
    gain: PastGain | None


def read_history(record: Run, champion: str | None) -> History:
    """Read the last `decision.history_runs` runs of a run's model that trained something.

    A challenger that several runs came to counts once.
    """
    rungs: list[_Rung] = []
    unreadable: list[str] = []
    left = record.config.decision.history_runs
    for run in reversed(list(list_runs(record.store))):
        if left == 0:
            break
        if run.run_id == record.run_id or record.store.head(run.key("train-1.json")) is None:
            continue
        try:
            if run.parameters.model != record.config.model:
                continue
            found = list(_trained_rungs(run))
        except IntegrityError as error:
            unreadable.append(f"Run {run.run_id} cannot be read: {error.found.splitlines()[0]}.")
            continue
        rungs = found + rungs
        left -= bool(found)
    return History(
        latest=rungs[-1].summary if rungs else None,
        trainings=tuple(rung.training for rung in rungs if rung.training),
        gains=tuple({rung.summary.version: rung.gain for rung in rungs if rung.gain}.values()),
        retrained_in_vain=any(rung.fresh and rung.champion == champion for rung in rungs),
        unreadable=tuple(reversed(unreadable)),
    )


def _trained_rungs(run: Run) -> Iterator[_Rung]:
    """The rungs of a run that were trained."""
    plan = run.read("decide", Decision)
    for number, rung in enumerate(plan.rungs if plan else (), start=1):
        step = run.record(f"train-{number}", TrainingSummary)
        if plan is None or step is None:
            continue
        summary, training = step.document, run.config.training
        evaluation = run.read(f"evaluate-{number}", Evaluation)
        gain = None
        if evaluation and evaluation.new_gain is not None and plan.evidence:
            situation = describe_situation(plan.evidence, run.config.decision)
            gain = PastGain(
                strategy=rung.strategy, situation=situation, old=evaluation.old_gain, new=evaluation.new_gain
            )
        took = PastTraining(
            strategy=rung.strategy,
            device=summary.device,
            architecture=training.architecture,
            work=training_work(rung.hyperparameters, summary.rows, training),
            seconds=summary.seconds,
            other_seconds=max(0.0, step.seconds - summary.seconds),
        )
        yield _Rung(
            champion=plan.champion,
            fresh=rung.hyperparameters.start == "fresh",
            summary=summary,
            training=took if summary.attempts == 1 else None,
            gain=gain,
        )


def since_full_retrain(
    record: Run, registry: Registry, ledger: Sequence[LedgerRecord], version: str
) -> dict[str, object]:
    """When the model was last trained from scratch, and what it forgot since: fields of `Evidence`.

    None of them where an ancestor cannot be read; nothing depends on one.
    """
    promoted: dict[str | None, LedgerRecord] = {}
    for entry in ledger:
        if entry.makes_champion:
            promoted.setdefault(entry.version, entry)  # a rollback promotes a version again
    try:
        for count, (name, lineage) in enumerate(registry.ancestors(version)):
            if lineage.hyperparameters.start == "fresh":
                first, lost = promoted.get(name), _lost_since(record, promoted.get(version)) if count else _NOTHING
                return {"retrained": first.created.date() if first else None, "windows_since": count, **lost}
    except IntegrityError as error:  # of an ancestor: the champion itself was read before
        logger.warning("decide: the history of the champion cannot be read: %s", error.found)
    return {}


def _lost_since(record: Run, entry: LedgerRecord | None) -> dict[str, object]:
    """By how much the champion is worse than the last version trained from scratch, on the holdout of that one's
    windows, as the run that promoted it measured."""
    if entry is None or entry.run_id is None:
        return {}
    run = Run(record.store, entry.run_id)
    for rung in range(1, MAX_RUNGS + 1):
        evaluation = run.read(f"evaluate-{rung}", Evaluation)
        if (
            evaluation
            and evaluation.challenger == entry.version
            and evaluation.anchor
            and evaluation.anchor.paired.rows
        ):
            lost, reach = _paired_loss(evaluation.anchor.paired)
            return {"forgotten": lost, "forgotten_interval": Interval(lower=lost - reach, upper=lost + reach)}
    return {}


def _paired_loss(paired: PairedOutcome) -> tuple[float, float]:
    """By how much the challenger is less accurate on the same rows, and half of the 95 % interval (Newcombe 1998)."""
    better, worse, rows = paired.only_challenger_right, paired.only_champion_right, paired.rows
    variance = (better + worse - (worse - better) ** 2 / rows) / rows**2
    return (worse - better) / rows, NormalDist().inv_cdf(0.975) * sqrt(variance)
