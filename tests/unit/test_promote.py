"""How a run ends: a ledger record or none, a quarantine file, and what happens when another run was faster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.contracts import Failure, Outcome
from components.core.errors import IntegrityError, RunFailed
from components.core.plans import Decision
from components.promote import step
from tests.unit.promotion import begin, file, judged, save, write_config


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def manual_path(config_path: Path) -> Path:
    config_path.write_text(config_path.read_text() + "decision: {mode: manual}\n")
    return config_path


def test_promotion_is_one_record_and_repeating_the_step_adds_none(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    first = step.promote(str(config_path), "one", "w", version, 1)
    assert (first.outcome, first.champion_after, first.ledger_number) == ("promoted", version, 1)
    assert step.promote(str(config_path), "one", "w", version, 1) == first
    assert [(r.kind, r.version, r.run_id) for r in registry.ledger()] == [("promotion", version, "one")]


@pytest.mark.parametrize("word", ["promote", "reject", "hold"])
def test_outcome_bears_witness_to_its_ledger_record(config_path: Path, word: str):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None, word)
    if word == "promote":
        told = step.promote(str(config_path), "one", "w", version, 1)
    else:
        told = step.record_outcome(str(config_path), "one", "w", word, 1)
    assert (told.ledger_number, told.ledger_digest is None) == (1, False)
    registry.check_witness(1, str(told.ledger_digest))
    key = "models/m/ledger/0000000001.json"
    run.store.put(key, run.store.get(key).replace(b'"w"', b'"x"'))
    assert len(registry.ledger()) == 1, "the newest record has no follower that would notice"
    with pytest.raises(IntegrityError, match="record 1 is not the one that its run has written"):
        registry.check_witness(1, str(told.ledger_digest))


def test_step_cut_off_between_ledger_and_record_promotes_once(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    step.promote(str(config_path), "one", "w", version, 1)
    run.store.delete(run.key("outcome.json"))  # as if the pod was lost after the ledger was written
    again = step.promote(str(config_path), "one", "w", version, 1)
    assert (again.outcome, again.ledger_number) == ("promoted", 1)
    assert len(registry.ledger()) == 1


def test_slower_run_is_held_and_the_faster_champion_stays(config_path: Path):
    slow, registry = begin(config_path, "slow")
    fast, _ = begin(config_path, "fast")
    mine, theirs = save(registry, b"1"), save(registry, b"2")
    judged(slow, mine, None)
    judged(fast, theirs, None)
    step.promote(str(config_path), "fast", "w", theirs, 1)
    outcome = step.promote(str(config_path), "slow", "w", mine, 1)
    assert (outcome.outcome, outcome.champion_after, outcome.ledger_number) == ("held", theirs, None)
    assert [r.version for r in registry.ledger()] == [theirs]


def test_tampered_challenger_is_not_promoted(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    run.store.put(f"models/m/versions/{version}/weights", b"2")
    with pytest.raises(IntegrityError, match="weights"):
        step.promote(str(config_path), "one", "w", version, 1)
    assert registry.ledger() == []
    assert run.store.head("runs/one/failure-outcome.json"), "the reason is filed for the report"


def test_manual_mode_leaves_the_challenger_waiting_and_names_the_command(manual_path: Path):
    run, registry = begin(manual_path, "one")
    champion, version = save(registry, b"0"), save(registry, b"1")
    keys = {"window": "w", "run_id": "zero", "actor": "tests", "reason": "because"}
    first = registry.append("promotion", champion, expected_champion=None, **keys)
    judged(run, version, champion)
    told = step.promote(str(manual_path), "one", "w", version, 1)
    assert (told.outcome, told.champion_before, told.champion_after) == ("waiting", champion, champion)
    assert (told.ledger_number, told.ledger_digest) == (None, None)
    assert f"Challenger {version[:12]} waits for approval (retrain approve one --reason TEXT)" in told.reason
    assert registry.ledger() == [first]
    assert run.need("outcome", Outcome) == told


def test_mode_is_the_one_of_the_runs_beginning(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    config_path.write_text(config_path.read_text() + "decision: {mode: manual}\n")
    assert step.promote(str(config_path), "one", "w", version, 1).outcome == "promoted"


def test_tampered_challenger_does_not_wait_either(manual_path: Path):
    run, registry = begin(manual_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    run.store.put(f"models/m/versions/{version}/weights", b"2")
    with pytest.raises(IntegrityError, match="weights"):
        step.promote(str(manual_path), "one", "w", version, 1)
    assert run.read("outcome", Outcome) is None


@pytest.mark.parametrize("word", ["reject", "hold", "escalate"])
def test_challenger_that_the_gate_did_not_pass_is_not_promoted(config_path: Path, word: str):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None, word)
    with pytest.raises(RunFailed, match=f"'{word}' of {version}"):
        step.promote(str(config_path), "one", "w", version, 1)
    assert registry.ledger() == []
    assert run.read("outcome", Outcome) is None
    assert run.need("failure-outcome", Failure).exit_code == RunFailed.exit_code


def test_challenger_that_was_not_judged_is_not_promoted(config_path: Path):
    run, registry = begin(config_path, "one")
    passed, other = save(registry, b"1"), save(registry, b"2")
    judged(run, passed, None)
    with pytest.raises(RunFailed, match=f"{passed}, and {other} was to be promoted"):
        step.promote(str(config_path), "one", "w", other, 1)
    assert registry.ledger() == []
    assert step.promote(str(config_path), "one", "w", passed, 1).champion_after == passed


@pytest.mark.parametrize(("word", "kind", "outcome"), [("reject", "rejection", "rejected"), ("hold", "hold", "held")])
def test_challenger_that_is_turned_down_is_in_the_ledger_and_champion_stays(
    config_path: Path, word: str, kind: str, outcome: str
):
    run, registry = begin(config_path, "one")
    champion, version = save(registry, b"0"), save(registry, b"1")
    judged(run, champion, None)
    step.promote(str(config_path), "one", "w", champion, 1)
    next_run, _ = begin(config_path, "two")
    judged(next_run, version, champion, word)
    told = step.record_outcome(str(config_path), "two", "w2", word, 1)
    assert (told.outcome, told.champion_after, told.ledger_number) == (outcome, champion, 2)
    assert [r.kind for r in registry.ledger()] == ["promotion", kind]
    assert registry.champion().version == champion


@pytest.mark.parametrize(("word", "outcome"), [("skip", "skipped"), ("quarantine", "quarantined")])
def test_window_that_does_not_train_leaves_the_ledger_alone(config_path: Path, word: str, outcome: str):
    run, registry = begin(config_path, "one")
    file(run, "decide", Decision(action=word, rule="r", reasons=("because",)))
    told = step.record_outcome(str(config_path), "one", "w", word, 0)
    assert (told.outcome, told.reason) == (outcome, "because")
    assert registry.ledger() == []
    quarantined = [o.key for o in run.store.list_objects("quarantine/")]
    assert quarantined == (["quarantine/d/w.json"] if word == "quarantine" else [])
    if quarantined:
        assert json.loads(run.store.get(quarantined[0]))["reasons"] == ["because"]
