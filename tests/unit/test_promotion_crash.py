"""A crash at every write of a promotion, before it and after: the champion is the old or the new one, and trying again
ends in one promotion."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from components.core.contracts import Outcome
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import DirectoryStore
from components.evaluate.loading import load_version
from components.promote import step
from components.promote.approval import approve_run
from tests.unit.crashes import Crash, CrashingStore
from tests.unit.decision import no_rematch
from tests.unit.promotion import begin, judged, save_network
from tests.unit.test_promote import config_path, manual_path  # noqa: F401


def state(registry: Registry) -> tuple[list[str], str]:
    """Kinds of the ledger's records, and the champion, whose files are verified, and which loads."""
    champion = registry.champion()
    assert champion
    registry.verify_version(champion.version)
    load_version(registry, champion.version)
    return [record.kind for record in registry.ledger()], champion.version


def crash_at_every_write(
    root: Path, work: Callable[[DirectoryStore], object], *, before: bool, valid: list[list[str]]
) -> int:
    """Do work that promotes, dying at its first write, then its second, until none is left to die at; each time on the
    store as it was, and each time do it again to its end.

    Args:
        root: The store, with a champion.
        work: What is done with a store.
        before: Whether it dies before a write is done, or after.
        valid: The kinds of the ledger's records, as they may be after a crash. The last is what it comes to.

    Returns:
        How many writes there are.
    """
    sound = DirectoryStore(root)
    registry, pristine = Registry(sound, "m"), {o.key: sound.get(o.key) for o in sound.list_objects()}
    _, old = state(registry)
    for fatal in count(1):
        for listed in list(sound.list_objects()):
            sound.delete(listed.key)
        for key, data in pristine.items():
            sound.put(key, data)
        store = CrashingStore(root, fatal, after=not before)
        try:
            work(store)
        except Crash:
            kinds, champion = state(registry)
            assert kinds in valid, fatal
            assert (champion == old) == (kinds != valid[-1]), fatal
        work(sound)
        kinds, champion = state(registry)
        assert kinds == valid[-1], fatal
        assert champion != old, fatal
        if not store.crashed:
            return fatal - 1
    raise AssertionError("work has an end")


def prepare(path: Path) -> tuple[DirectoryStore, str]:
    """A store with a champion."""
    run, registry = begin(path, "one")
    old = save_network(registry, 1)
    keys = {"window": "w", "run_id": None, "actor": "tests", "reason": "because"}
    registry.append("promotion", old, expected_champion=None, **keys)
    assert isinstance(run.store, DirectoryStore)
    return run.store, old


@pytest.mark.parametrize("before", [True, False])
def test_crash_at_any_write_of_a_promotion(
    config_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
):
    place, old = prepare(config_path)

    def save_and_promote(store: DirectoryStore) -> None:
        """What train, gate and promote write, in the order in which they do."""
        version = save_network(Registry(store, "m"), 2, old)
        judged(Run(store, "one"), version, old)
        monkeypatch.setattr("components.core.runs.open_store", lambda config: store)
        step.promote(str(config_path), "one", "w", version, 1, no_rematch)

    valid = [["promotion"], ["promotion", "promotion"]]
    writes = crash_at_every_write(place.root, save_and_promote, before=before, valid=valid)
    # Three files and a manifest; window, plan, evaluation and verdict; the probe's create, second create and delete;
    # six files of evidence, their manifest, where they are; the ledger and its head; the outcome.
    assert writes == 22


@pytest.mark.parametrize("before", [True, False])
def test_crash_at_any_write_of_an_approval(
    manual_path: Path,  # noqa: F811
    before: bool,
):
    place, old = prepare(manual_path)
    run = Run(place, "one")
    version = save_network(Registry(place, "m"), 2, old)
    judged(run, version, old)
    assert step.promote(str(manual_path), "one", "w", version, 1, no_rematch).outcome == "waiting"

    def approve(store: DirectoryStore) -> None:
        approve_run(store, "m", "one", actor="me", reason="looked at it")

    valid = [["promotion"], ["promotion", "approval"], ["promotion", "approval", "promotion"]]
    writes = crash_at_every_write(place.root, approve, before=before, valid=valid)
    assert writes == 8  # the probe's three; approval and promotion, each with its head; the outcome
    assert run.need("outcome", Outcome).outcome == "promoted"
