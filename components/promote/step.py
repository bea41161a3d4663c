"""Promote, or record why not: the only steps that write to the ledger and the quarantine."""

from __future__ import annotations

from components.core.contracts import LedgerKind, Outcome, Verdict, VerdictWord
from components.core.errors import RunFailed
from components.core.plans import Decision
from components.core.probe import check_store
from components.core.registry import LostRace, Registry, RolledBack
from components.core.rematches import Judge, Rematch, list_verdicts
from components.core.runs import Run, open_run, perform
from components.core.storage import to_json
from components.promote.bundle import file_evidence

ACTOR = "pipeline"
KINDS: dict[VerdictWord, LedgerKind] = {"promote": "promotion", "reject": "rejection", "hold": "hold"}


def promote(config_path: str, run_id: str, window: str, challenger: str, rung: int, judge: Judge) -> Outcome:
    """Make the challenger the champion: verify its files, file the evidence, then append one
    record to the ledger.

    If another run has changed the champion since this challenger was judged, it is judged again, against the new one:
    what passes tries again, `promotion.max_tries` times in all, and what does not is `rejected` or `held`, on record.
    In manual mode (`decision.mode`) nothing is promoted: the outcome is `waiting`, until `approval.approve_run`.

    Args:
        config_path: The configuration file.
        run_id: The run.
        window: Id of the window.
        challenger: Its version.
        rung: Which attempt of the plan, from 1.
        judge: Evaluates and gates the challenger against the champion of a rematch.

    Raises:
        IntegrityError: The challenger's files are not what was written.
        UnsoundStore: The store does not keep create-only writes.
    """
    record = open_run(config_path, run_id)
    return perform("outcome", record, Outcome, lambda: _promote(record, window, challenger, rung, judge))


def _promote(record: Run, window: str, challenger: str, rung: int, judge: Judge) -> Outcome:
    first = record.need(f"gate-{rung}", Verdict)
    if (first.verdict, first.challenger) != ("promote", challenger):
        raise RunFailed(
            f"the gate said {first.verdict!r} of {first.challenger}, and {challenger} was to be promoted",
            expected="a promotion of what the gate passed",
            next_command="run again; report this as a bug of the graph",
        )
    Registry(record.store, record.config.model).verify_version(challenger)
    if record.config.decision.mode == "manual":
        return _wait(record, first, rung)
    return _contend(record, window, rung, judge)


def _contend(record: Run, window: str, rung: int, judge: Judge) -> Outcome:
    """Take the verdict to the ledger, and a new one whenever the champion has changed since: from where an earlier try
    of this step was cut off."""
    verdicts, tries = list_verdicts(record, rung), record.config.promotion.max_tries
    while True:
        verdict = verdicts[-1]
        try:
            return _conclude(record, window, rung, verdict, _tell(verdicts), made_from=verdicts[0].champion)
        except RolledBack as race:
            why = "It, or the champion that it was made from, was rolled back from meanwhile: run the window again."
            return _overtaken(verdict, race, why)
        except LostRace as race:
            if verdict.verdict != "promote":
                return _overtaken(verdict, race, _tell(verdicts))
            if verdict.challenger == race.champion:
                return _overtaken(verdict, race, "Another run came to the same challenger: it is champion already.")
            if len(verdicts) >= tries:
                return _overtaken(verdict, race, f"Other runs promoted first, {tries} times: run the window again.")
            verdicts.append(judge(Rematch(number=len(verdicts), champion=race.champion)))


def _tell(verdicts: list[Verdict]) -> str:
    """The findings that count, and why they are not the first."""
    *before, last = verdicts
    if not before:
        return last.findings
    passed = ", ".join(_name(verdict.champion) for verdict in before)
    return f"Passed against {passed}; {_name(last.champion)} was promoted meanwhile. Against it: {last.findings}"


def _name(champion: str | None) -> str:
    return champion[:12] if champion else "no champion"


def _overtaken(verdict: Verdict, race: LostRace, reason: str) -> Outcome:
    """Nothing enters the ledger: the verdict stands for the champion it was made against, and that is none any more."""
    return Outcome(
        outcome="rejected" if verdict.verdict == "reject" else "held",
        champion_before=verdict.champion,
        champion_after=race.champion,
        ledger_number=None,
        reason=reason,
    )


def _conclude(
    record: Run, window: str, rung: int, verdict: Verdict, reason: str, made_from: str | None = None
) -> Outcome:
    """The one place where a verdict becomes a ledger record, or the one that this run has there already; the evidence
    of a promotion is filed before.

    Raises:
        LostRace: The champion is not the one that the verdict is about.
        RolledBack: What is to be promoted, or the champion that it was made from, was rolled back from.
        UnsoundStore: See `check_store`.
    """
    registry, promoted = Registry(record.store, record.config.model), verdict.verdict == "promote"
    check_store(record.store)
    evidence = file_evidence(record, registry, rung, ACTOR) if promoted else None
    entry = registry.append(
        KINDS[verdict.verdict],
        verdict.challenger,
        expected_champion=verdict.champion,
        window=window,
        run_id=record.run_id,
        actor=ACTOR,
        reason=reason,
        evidence=evidence.digest if evidence else None,
        unless_undone=(verdict.challenger, made_from) if promoted else (),
    )
    return Outcome(
        outcome="promoted" if promoted else "rejected" if verdict.verdict == "reject" else "held",
        champion_before=entry.champion_before,
        champion_after=verdict.challenger if promoted else entry.champion_before,
        ledger_number=entry.number,
        evidence=entry.evidence,
        reason=entry.reason,
    )


def _wait(record: Run, verdict: Verdict, rung: int) -> Outcome:
    evidence = file_evidence(record, Registry(record.store, record.config.model), rung, ACTOR)
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
    try:
        return _conclude(record, window, rung, verdict, verdict.findings)
    except LostRace as race:
        return _overtaken(verdict, race, verdict.findings)
