"""Promote, or record why not: the only steps that write to the ledger and the quarantine."""

from __future__ import annotations

from components.core.contracts import EvidenceBundle, LedgerKind, LedgerRecord, Outcome, Verdict
from components.core.errors import RunFailed
from components.core.plans import Decision
from components.core.registry import LostRace, Registry
from components.core.runs import Run, open_run, perform
from components.core.storage import to_json
from components.promote.bundle import file_evidence

ACTOR = "pipeline"


def promote(config_path: str, run_id: str, window: str, challenger: str, rung: int) -> Outcome:
    """Make the challenger the champion: verify its files, file the evidence, then append one record to the ledger.

    If another run has changed the champion since this challenger was judged, nothing is promoted: the outcome is
    `held`, and the next run judges against the new champion. In manual mode (`decision.mode`) nothing is promoted
    either: the outcome is `waiting`, until `approval.approve_run`.

    Raises:
        IntegrityError: The challenger's files are not what was written.
    """
    record = open_run(config_path, run_id)
    return perform("outcome", record, Outcome, lambda: _promote(record, window, challenger, rung))


def _promote(record: Run, window: str, challenger: str, rung: int) -> Outcome:
    registry = Registry(record.store, record.config.model)
    verdict = record.need(f"gate-{rung}", Verdict)
    if (verdict.verdict, verdict.challenger) != ("promote", challenger):
        raise RunFailed(
            f"the gate said {verdict.verdict!r} of {verdict.challenger}, and {challenger} was to be promoted",
            expected="a promotion of what the gate passed",
            next_command="run again; report this as a bug of the graph",
        )
    registry.verify_version(challenger)
    evidence = file_evidence(record, registry, verdict, rung, ACTOR)
    if record.config.decision.mode == "manual":
        return _wait(record, verdict, evidence)
    try:
        entry = _append(registry, record, "promotion", window, verdict, evidence)
    except LostRace as race:
        return Outcome(
            outcome="held",
            champion_before=verdict.champion,
            champion_after=race.champion,
            ledger_number=None,
            reason="Another run promoted while this one was judged: run again against the new champion.",
        )
    return Outcome(
        outcome="promoted",
        champion_before=verdict.champion,
        champion_after=challenger,
        ledger_number=entry.number,
        ledger_digest=registry.record_digest(entry.number),
        evidence=entry.evidence,
        reason=verdict.findings,
    )


def _wait(record: Run, verdict: Verdict, evidence: EvidenceBundle) -> Outcome:
    command = f"retrain approve {record.run_id} --reason TEXT"
    return Outcome(
        outcome="waiting",
        champion_before=verdict.champion,
        champion_after=verdict.champion,
        ledger_number=None,
        evidence=evidence.digest,
        reason=f"Challenger {verdict.challenger[:12]} waits for approval ({command}). {verdict.findings}",
    )


def record_outcome(config_path: str, run_id: str, window: str, word: str, rung: int) -> Outcome:
    """File a run that promotes nothing: skip, quarantine, reject or hold.

    Args:
        config_path: The configuration file.
        run_id: The run.
        window: Id of the window.
        word: The decision's action, or the gate's verdict.
        rung: The attempt that was judged; 0 where none was made.
    """
    record = open_run(config_path, run_id)
    work = {"skip": _skip, "quarantine": _quarantine, "reject": _turn_down, "hold": _turn_down}[word]
    return perform("outcome", record, Outcome, lambda: work(record, window, rung))


def _skip(record: Run, window: str, rung: int) -> Outcome:
    decision = record.need("decide", Decision)
    return Outcome(
        outcome="skipped",
        champion_before=decision.champion,
        champion_after=decision.champion,
        ledger_number=None,
        reason=decision.reasons[0],
    )


def _quarantine(record: Run, window: str, rung: int) -> Outcome:
    decision = record.need("decide", Decision)
    record.store.put(f"quarantine/{record.config.dataset}/{window}.json", to_json(decision))
    return Outcome(
        outcome="quarantined",
        champion_before=decision.champion,
        champion_after=decision.champion,
        ledger_number=None,
        reason=decision.reasons[0],
    )


def _turn_down(record: Run, window: str, rung: int) -> Outcome:
    verdict = record.need(f"gate-{rung}", Verdict)
    registry = Registry(record.store, record.config.model)
    kind: LedgerKind = "rejection" if verdict.verdict == "reject" else "hold"
    number: int | None
    digest: str | None
    try:
        entry = _append(registry, record, kind, window, verdict)
        number, digest, champion = entry.number, registry.record_digest(entry.number), verdict.champion
    except LostRace as race:  # the verdict stands for the champion it was made against; the ledger has moved on
        number, digest, champion = None, None, race.champion
    return Outcome(
        outcome="rejected" if kind == "rejection" else "held",
        champion_before=verdict.champion,
        champion_after=champion,
        ledger_number=number,
        ledger_digest=digest,
        reason=verdict.findings,
    )


def _append(
    registry: Registry,
    record: Run,
    kind: LedgerKind,
    window: str,
    verdict: Verdict,
    evidence: EvidenceBundle | None = None,
) -> LedgerRecord:
    return registry.append(
        kind,
        verdict.challenger,
        expected_champion=verdict.champion,
        window=window,
        run_id=record.run_id,
        actor=ACTOR,
        reason=verdict.findings,
        evidence=evidence.digest if evidence else None,
    )
