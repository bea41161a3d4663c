"""Let a quarantined window pass: a person's override of validation and triage, on record in the ledger."""

from __future__ import annotations

from components.core.contracts import LedgerRecord
from components.core.errors import ConfigurationError
from components.core.plans import Decision
from components.core.probe import check_store
from components.core.registry import LostRace, Registry
from components.core.storage import ObjectStore, get_json


def quarantined(store: ObjectStore, dataset: str) -> dict[str, Decision]:
    """The windows in quarantine, each with the decision that put it there."""
    prefix = _key(dataset, "")
    keys = [listed.key for listed in store.list_objects(prefix)]
    found = {key.removeprefix(prefix).removesuffix(".json"): get_json(store, key, Decision) for key in keys}
    return {window: decision for window, decision in found.items() if decision}


def release_window(
    store: ObjectStore, model: str, dataset: str, window: str, *, actor: str, reason: str
) -> LedgerRecord:
    """Release a window: one ledger record, then it leaves the quarantine. Its next run decides by the other rules.

    Args:
        window: Id of a window in quarantine, or the start of one.
        actor: Who releases it.
        reason: Why, in a sentence.

    Raises:
        ConfigurationError: There is not exactly one such window in quarantine.
        UnsoundStore: The store does not keep create-only writes.
    """
    waiting = sorted(w for w in quarantined(store, dataset) if window and w.startswith(window))
    if len(waiting) != 1:
        raise ConfigurationError(
            f"{len(waiting)} windows in quarantine that start with {window!r}",
            expected="the id of one window in quarantine",
            next_command="retrain status lists them",
        )
    registry = Registry(store, model)
    earlier = [record for record in registry.ledger() if (record.kind, record.window) == ("release", waiting[0])]
    check_store(store)
    record = earlier[-1] if earlier else _append(registry, waiting[0], actor, reason)
    store.delete(_key(dataset, f"{waiting[0]}.json"))
    return record


def _append(registry: Registry, window: str, actor: str, reason: str) -> LedgerRecord:
    while True:
        champion = registry.champion()
        before = champion.version if champion else None
        try:
            return registry.append(
                "release", None, expected_champion=before, window=window, run_id=None, actor=actor, reason=reason
            )
        except LostRace:
            continue  # a release is about a window: whoever is champion by now


def _key(dataset: str, name: str) -> str:
    return f"quarantine/{dataset}/{name}"
