"""Approve what a run in manual mode left waiting: a person's promotion, on record in the ledger."""

from __future__ import annotations

from components.core.contracts import LedgerKind, LedgerRecord, Outcome, Verdict, WindowDocument
from components.core.errors import ConfigurationError
from components.core.probe import check_store
from components.core.registry import LostRace, Registry, RolledBack
from components.core.rematches import list_attempts
from components.core.runs import Run, StepRecord
from components.core.storage import ObjectStore
from components.core.succession import read_succession


def approve_run(store: ObjectStore, model: str, run_id: str, *, actor: str, reason: str) -> LedgerRecord:
    """Promote the challenger of a run that waits: verify its files, then an `approval` and a `promotion` in the ledger.

    The run's outcome becomes `promoted`. Approving again finishes what was cut off, and hands out the promotion that
    is there; the first approval's name and reason stay.

    Args:
        run_id: The whole id of the run.
        actor: Who approves.
        reason: Why, in a sentence.

    Raises:
        ConfigurationError: The run is another model's or does not wait, another run has promoted meanwhile, or the
            challenger was rolled back from.
        IntegrityError: Files of the challenger, or of its evidence, are not what was written.
        UnsoundStore: The store does not keep create-only writes.
    """
    run, registry = Run(store, run_id), Registry(store, model)
    waiting, verdict = _waiting(run, registry), passed_verdict(run)
    _refuse_undone(registry, verdict.challenger)
    registry.verify_version(verdict.challenger)
    evidence = waiting.document.evidence
    if evidence:  # none where the run waits since before there were any
        registry.evidence(evidence).verify()
    check_store(store)
    approval, promotion = _append(run, registry, verdict, evidence, actor, reason)
    outcome = Outcome(
        outcome="promoted",
        champion_before=verdict.champion,
        champion_after=verdict.challenger,
        ledger_number=promotion.number,
        evidence=promotion.evidence,
        reason=f"{verdict.findings} Approved by {approval.actor}: {approval.reason}",
    )
    run.replace(waiting.model_copy(update={"document": outcome}))
    return promotion


def _refuse_undone(registry: Registry, challenger: str) -> None:
    """Approving again hands out the promotion that is there, but not one that was taken back since."""
    rollback = read_succession(registry.ledger()).undone.get(challenger)
    if rollback:
        raise ConfigurationError(
            f"{challenger} was rolled back from by {rollback.actor}: {rollback.reason}",
            expected="a challenger that nobody has taken back",
            next_command=f"retrain rollback --to {challenger[:12]} --reason TEXT brings it back",
        )


def passed_verdict(run: Run) -> Verdict:
    """What the gate said of the attempt that it passed, in a run that waits."""
    (passed,) = [verdicts[-1] for verdicts in list_attempts(run) if verdicts[-1].verdict == "promote"]
    return passed


def _append(
    run: Run, registry: Registry, verdict: Verdict, evidence: str | None, actor: str, reason: str
) -> tuple[LedgerRecord, LedgerRecord]:
    """The approval and the promotion: those that the run has in the ledger already, or new ones."""
    window = run.need("ingest", WindowDocument).id

    def append(kind: LedgerKind, actor: str, reason: str) -> LedgerRecord:
        return registry.append(
            kind,
            verdict.challenger,
            expected_champion=verdict.champion,
            window=window,
            run_id=run.run_id,
            actor=actor,
            reason=reason,
            evidence=evidence,
            unless_undone=(verdict.challenger,),
        )

    try:
        approval = append("approval", actor, reason)
        return approval, append("promotion", approval.actor, verdict.findings)
    except RolledBack:
        _refuse_undone(registry, verdict.challenger)
        raise
    except LostRace as race:
        if race.champion == verdict.challenger:
            raise ConfigurationError(
                f"{verdict.challenger} is champion already: another run came to the same challenger",
                expected="a challenger that is not promoted yet",
                next_command="nothing: it is in force",
            ) from race
        raise ConfigurationError(
            f"champion {race.champion or 'none'}; {verdict.challenger} was judged against another one",
            expected=f"champion {verdict.champion or 'none'}",
            next_command=f"retrain run {window} judges against the new champion",
        ) from race


def _waiting(run: Run, registry: Registry) -> StepRecord[Outcome]:
    """The outcome of a run that waits, or that was approved before."""
    if (model := run.parameters.model) != registry.model:
        raise ConfigurationError(
            f"run {run.run_id} of model {model}",
            expected=f"a run of {registry.model}",
            next_command=f"the configuration file of {model}: retrain approve {run.run_id} --config FILE",
        )
    record = run.record("outcome", Outcome)
    approved = any((entry.run_id, entry.kind) == (run.run_id, "approval") for entry in registry.ledger())
    if record is None or not (approved or record.document.outcome == "waiting"):
        raise ConfigurationError(
            f"run {run.run_id} " + (f"is {record.document.outcome}" if record else "has no outcome yet"),
            expected="a run that waits for approval",
            next_command="retrain status lists them",
        )
    return record
