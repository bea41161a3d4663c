"""Roll back: make a former champion the champion again, by one record in the ledger.

Covers which version may be the target and the record. Not covered: whether the target still is as good as it was
(`evaluate.rescore`), which is asked first.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.core.contracts import LedgerRecord
from components.core.errors import ConfigurationError
from components.core.probe import check_store
from components.core.registry import LostRace, Registry
from components.core.succession import promotion_of, read_succession


def find_target(ledger: Sequence[LedgerRecord], name: str | None) -> str:
    """The version that a rollback is to.

    Args:
        ledger: The model's, oldest first.
        name: The start of a version's id; None: the champion before the present one.

    Raises:
        ConfigurationError: No former champion is called that, or several are, or there is none before.
    """
    champions = read_succession(ledger)
    if name is None and champions.previous is not None:
        return champions.previous
    matches = [version for version in champions.past if name and version.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    raise ConfigurationError(
        f"no champion before {champions.standing[-1] if champions.standing else 'the first one'}"
        if name is None
        else f"{len(matches)} former champions that start with {name!r}",
        expected=f"one of the former champions: {', '.join(champions.past[:-1]) or 'there are none'}",
        next_command="retrain rollback --to VERSION --reason TEXT",
    )


def find_done(ledger: Sequence[LedgerRecord], name: str | None, *, actor: str, reason: str) -> LedgerRecord | None:
    """The record that did already what is asked: its target is champion, or the same command was given last.

    A command without a target that was cut off between the record and its answer must not go further back when it is
    given again. Whoever wants to go further back names the target, or gives a reason of its own.
    """
    made = [record for record in ledger if record.makes_champion]
    if not made:
        return None
    last = made[-1]
    if name is None:
        return last if (last.kind, last.actor, last.reason) == ("rollback", actor, reason) else None
    return last if last.version == find_target(ledger, name) else None


def roll_back(registry: Registry, target: str, *, champion: str, actor: str, reason: str) -> LedgerRecord:
    """Write the record, with the evidence that the target's own promotion rests on.

    The target's files must be verified before. That they are not removed meanwhile (`core.garbage`) is certain: a
    removal is a record in the same ledger, and this one stands only right after the records that were looked at.

    Args:
        registry: Of the model.
        target: The version that is champion afterwards.
        champion: The one that is rolled back from.
        actor: Who does it.
        reason: Why.

    Raises:
        ConfigurationError: Another version has become champion meanwhile, or the target was removed.
        UnsoundStore: The store does not keep create-only writes.
    """
    check_store(registry.store)
    while True:
        ledger = registry.ledger()
        find_target(ledger, target)
        promotion = promotion_of(ledger, target)
        try:
            return registry.append(
                "rollback",
                target,
                expected_champion=champion,
                window=None,
                run_id=None,
                actor=actor,
                reason=reason,
                evidence=promotion.evidence if promotion else None,
                after=len(ledger),
            )
        except LostRace as race:
            if race.champion == champion:
                continue  # a record about something else: look at the ledger again
            raise ConfigurationError(
                f"{race.champion} has become champion meanwhile",
                expected=f"champion {champion}, which was to be rolled back from",
                next_command="retrain status shows the champion; then decide again",
            ) from race
