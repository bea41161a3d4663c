"""Approving what a run in manual mode left waiting: two records in the ledger, or none, and what is told of the run."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.core.contracts import (
    LedgerRecord,
    Outcome,
    RunReport,
    Verdict,
)
from components.core.errors import ConfigurationError, IntegrityError
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import DirectoryStore
from components.promote import step
from components.promote.approval import approve_run
from components.promote.rollback import roll_back
from components.report.step import tell
from pipelines.audit import verify_version
from pipelines.cli import app
from pipelines.status import approve
from tests.unit import promotion
from tests.unit.decision import no_rematch
from tests.unit.promotion import CHECK, begin, evaluation, file, save


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(folder: Path, model: str = "m", mode: str = "manual") -> Path:
    return promotion.write_config(folder, f"{model}.yaml", model=model, decision={"mode": mode})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(DirectoryStore(tmp_path / "store"), "m")


def judged(config_path: Path, run_id: str, version: str, champion: str | None = None, window: str = "w") -> Run:
    """A run as far as its gate: the first attempt was no good, the second passed."""
    run, _ = begin(config_path, run_id)
    file(run, "ingest", promotion.window(window))
    file(run, "decide", Decision(action="train", rule="r", reasons=("because",), champion=champion))
    file(run, "gate-1", Verdict(verdict="escalate", challenger="0" * 32, champion=champion, checks=(CHECK,)))
    file(run, "evaluate-2", evaluation(version, champion))
    file(run, "gate-2", Verdict(verdict="promote", challenger=version, champion=champion, checks=(CHECK,)))
    return run


def waiting(config_path: Path, run_id: str, version: str, champion: str | None = None, window: str = "w") -> Run:
    """A run that has ended and waits."""
    run = judged(config_path, run_id, version, champion, window)
    assert step.promote(str(config_path), run_id, window, version, 2, no_rematch).outcome == "waiting"
    tell(run)
    return run


def approved(registry: Registry, run_id: str, actor: str = "ada", reason: str = "looked at it") -> LedgerRecord:
    return approve_run(registry.store, registry.model, run_id, actor=actor, reason=reason)


def kinds(registry: Registry) -> list[str]:
    return [record.kind for record in registry.ledger()]


# --- approving


def test_approval_is_two_records_in_the_persons_name_and_makes_the_champion(config_path: Path, registry: Registry):
    version = save(registry, b"1")
    waiting(config_path, "one", version)
    record = approved(registry, "one")
    approval, promotion = registry.ledger()
    assert record == promotion
    for entry, kind in ((approval, "approval"), (promotion, "promotion")):
        assert (entry.kind, entry.version, entry.champion_before) == (kind, version, None)
        assert (entry.run_id, entry.window, entry.actor) == ("one", "w", "ada")
    assert (approval.reason, promotion.reason) == ("looked at it", "As good.")
    assert registry.champion().version == version


def test_approval_replaces_the_champion_that_the_challenger_was_judged_against(config_path: Path, registry: Registry):
    first, second = save(registry, b"1"), save(registry, b"2")
    waiting(config_path, "one", first)
    approved(registry, "one")
    waiting(config_path, "two", second, champion=first)
    assert approved(registry, "two").champion_before == first
    assert registry.champion().version == second


def test_outcome_of_an_approved_run_names_the_approver_and_the_promotion(config_path: Path, registry: Registry):
    version = save(registry, b"1")
    run = waiting(config_path, "one", version)
    before = run.record("outcome", Outcome)
    promotion = approved(registry, "one")
    after = run.record("outcome", Outcome)
    told = after.document
    assert (told.outcome, told.champion_before, told.champion_after) == ("promoted", None, version)
    assert told.reason == "As good. Approved by ada: looked at it"
    assert told.ledger_number == promotion.number == 2
    assert (after.started, after.seconds) == (before.started, before.seconds), "waiting is no time of the run"


def test_approval_rests_on_the_evidence_that_was_filed_when_the_run_began_to_wait(
    config_path: Path, registry: Registry
):
    run = waiting(config_path, "one", save(registry, b"1"))
    evidence = run.need("outcome", Outcome).evidence
    assert registry.evidence(evidence).verify().files
    assert approved(registry, "one").evidence == evidence
    assert run.need("outcome", Outcome).evidence == evidence


def test_evidence_that_was_tampered_with_while_the_run_waited_stops_the_approval(config_path: Path, registry: Registry):
    run = waiting(config_path, "one", save(registry, b"1"))
    evidence = run.need("outcome", Outcome).evidence
    registry.store.put(f"models/m/evidence/{evidence}/card.md", b"better")
    with pytest.raises(IntegrityError, match=r"card\.md"):
        approved(registry, "one")
    assert registry.ledger() == []


def test_run_that_waits_since_before_there_was_evidence_is_approved_without(config_path: Path, registry: Registry):
    run = waiting(config_path, "one", save(registry, b"1"))
    record = run.record("outcome", Outcome)
    run.replace(record.model_copy(update={"document": record.document.model_copy(update={"evidence": None})}))
    assert approved(registry, "one").evidence is None


def test_approving_twice_promotes_once_and_keeps_the_first_name(config_path: Path, registry: Registry):
    version = save(registry, b"1")
    run = waiting(config_path, "one", version)
    first = approved(registry, "one")
    assert approved(registry, "one", actor="bob", reason="me too") == first
    assert kinds(registry) == ["approval", "promotion"]
    assert run.need("outcome", Outcome).reason.endswith("Approved by ada: looked at it")


def test_approving_again_does_not_bring_back_a_champion_that_was_replaced(config_path: Path, registry: Registry):
    first, second = save(registry, b"1"), save(registry, b"2")
    waiting(config_path, "one", first)
    promotion = approved(registry, "one")
    waiting(config_path, "two", second, champion=first)
    approved(registry, "two")
    assert approved(registry, "one") == promotion
    assert registry.champion().version == second


def cut_off_before(kind: str) -> Callable[..., LedgerRecord]:
    """An `append` of a process that is killed before it writes such a record."""
    append = Registry.append

    def dying(self: Registry, wanted: Any, version: str | None, **keys: Any) -> LedgerRecord:
        if wanted == kind:
            raise KeyboardInterrupt
        return append(self, wanted, version, **keys)

    return dying


def test_approval_that_was_cut_off_before_the_promotion_is_finished_by_approving_again(
    config_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    version = save(registry, b"1")
    waiting(config_path, "one", version)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "append", cut_off_before("promotion"))
        with pytest.raises(KeyboardInterrupt):
            approved(registry, "one")
    assert (kinds(registry), registry.champion()) == (["approval"], None)
    promotion = approved(registry, "one", actor="bob", reason="finish it")
    assert kinds(registry) == ["approval", "promotion"]
    assert promotion.actor == "ada", "it is her approval that is carried out"
    assert registry.champion().version == version


def test_approval_that_was_cut_off_before_the_outcome_is_finished_by_approving_again(
    config_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    run = waiting(config_path, "one", save(registry, b"1"))

    def dying(self: Run, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            approved(registry, "one")
    assert run.need("outcome", Outcome).outcome == "waiting"
    assert status(config_path)["waiting"][0]["command"] == "retrain approve one --reason TEXT"
    assert approved(registry, "one").number == 2
    assert (run.need("outcome", Outcome).outcome, kinds(registry)) == ("promoted", ["approval", "promotion"])


# --- what is not approved


def test_challenger_that_was_overtaken_is_refused_and_nothing_is_lost(config_path: Path, registry: Registry):
    slow, fast = save(registry, b"1"), save(registry, b"2")
    run = waiting(config_path, "slow", slow, window="w1")
    waiting(config_path, "fast", fast, window="w2")
    approved(registry, "fast")
    with pytest.raises(ConfigurationError, match=f"champion {fast}; {slow} was judged against another") as error:
        approved(registry, "slow")
    assert error.value.expected == "champion none"
    assert "retrain run w1" in error.value.next_command
    assert (kinds(registry), registry.champion().version) == (["approval", "promotion"], fast)
    assert run.need("outcome", Outcome).outcome == "waiting"
    registry.verify_version(slow)


def test_race_that_is_lost_between_approval_and_promotion_keeps_the_faster_champion(
    config_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    slow, fast = save(registry, b"1"), save(registry, b"2")
    run = waiting(config_path, "slow", slow)
    waiting(config_path, "fast", fast)
    append = Registry.append

    def overtaken(self: Registry, kind: Any, version: str | None, **keys: Any) -> LedgerRecord:
        if (kind, version) == ("promotion", slow):
            approved(self, "fast")
        return append(self, kind, version, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "append", overtaken)
        with pytest.raises(ConfigurationError, match=f"champion {fast}"):
            approved(registry, "slow")
    assert kinds(registry) == ["approval", "approval", "promotion"]
    assert registry.champion().version == fast
    with pytest.raises(ConfigurationError, match=f"champion {fast}"):
        approved(registry, "slow")
    assert run.need("outcome", Outcome).outcome == "waiting"


def test_run_of_another_model_is_refused(tmp_path: Path, config_path: Path, registry: Registry):
    other = Registry(registry.store, "other")
    run = waiting(write_config(tmp_path, "other"), "one", save(other, b"1"))
    with pytest.raises(ConfigurationError, match="run one of model other"):
        approved(registry, "one")
    assert (registry.ledger(), other.ledger()) == ([], [])
    assert run.need("outcome", Outcome).outcome == "waiting"


def test_run_that_promoted_by_itself_is_not_approved(tmp_path: Path, registry: Registry):
    version = save(registry, b"1")
    managed = write_config(tmp_path, mode="managed")
    judged(managed, "one", version)
    step.promote(str(managed), "one", "w", version, 2, no_rematch)
    with pytest.raises(ConfigurationError, match="run one is promoted"):
        approved(registry, "one")
    assert kinds(registry) == ["promotion"]


def test_run_that_has_not_ended_is_not_approved(config_path: Path, registry: Registry):
    judged(config_path, "one", save(registry, b"1"))
    with pytest.raises(ConfigurationError, match="run one has no outcome yet"):
        approved(registry, "one")
    assert registry.ledger() == []


def test_run_that_there_is_not_is_not_approved(registry: Registry):
    with pytest.raises(ConfigurationError, match="run one has no record"):
        approved(registry, "one")


def test_damaged_challenger_is_not_approved(config_path: Path, registry: Registry):
    version = save(registry, b"1")
    run = waiting(config_path, "one", version)
    registry.store.put(f"models/m/versions/{version}/weights", b"2")
    with pytest.raises(IntegrityError, match="weights"):
        approved(registry, "one")
    assert registry.ledger() == []
    assert run.need("outcome", Outcome).outcome == "waiting"


# --- after a rollback


def two_champions(config_path: Path, registry: Registry) -> tuple[str, str]:
    """The second was judged against the first; both are approved."""
    first, second = save(registry, b"1"), save(registry, b"2")
    waiting(config_path, "one", first)
    approve(config_path, "one", "looked at it")
    waiting(config_path, "two", second, champion=first, window="w2")
    approve(config_path, "two", "looked at it")
    return first, second


def test_challenger_that_was_judged_against_what_was_rolled_back_from_is_overtaken(
    config_path: Path, registry: Registry
):
    first, second = two_champions(config_path, registry)
    waiting(config_path, "three", save(registry, b"3"), champion=second, window="w3")
    roll_back(registry, first, champion=second, actor="bob", reason="worse at night")
    with pytest.raises(ConfigurationError, match=f"champion {first}") as error:
        approved(registry, "three")
    assert "retrain run w3" in error.value.next_command
    (told,) = status(config_path)["waiting"]
    assert (told["run_id"], told["overtaken"], told["command"]) == ("three", True, "retrain run w3")


def test_challenger_that_was_judged_against_what_was_rolled_back_to_can_be_approved_again(
    config_path: Path, registry: Registry
):
    first, second = save(registry, b"1"), save(registry, b"2")
    waiting(config_path, "one", first)
    approve(config_path, "one", "looked at it")
    third = save(registry, b"3")
    waiting(config_path, "three", third, champion=first, window="w3")
    waiting(config_path, "two", second, champion=first, window="w2")
    approve(config_path, "two", "looked at it")
    assert [one["overtaken"] for one in status(config_path)["waiting"]] == [True]
    roll_back(registry, first, champion=second, actor="bob", reason="worse at night")
    assert [one["overtaken"] for one in status(config_path)["waiting"]] == [False]
    assert approved(registry, "three").champion_before == first
    assert registry.champion().version == third


def test_approving_again_does_not_bring_back_what_was_rolled_back_from(config_path: Path, registry: Registry):
    first, second = two_champions(config_path, registry)
    roll_back(registry, first, champion=second, actor="bob", reason="worse at night")
    with pytest.raises(ConfigurationError, match=f"{second} was rolled back from by bob: worse at night") as error:
        approve(config_path, "two", "looked at it")
    assert f"retrain rollback --to {second[:12]}" in error.value.next_command
    assert (registry.champion().version, len(registry.ledger())) == (first, 5)


# --- the commands


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def status(config_path: Path) -> dict[str, Any]:
    code, output = invoke("status", "--config", config_path, "--json")
    assert code == 0
    return json.loads(output)


def test_status_lists_what_waits_with_the_command(config_path: Path, registry: Registry):
    version = save(registry, b"1")
    waiting(config_path, "one", version)
    command = "retrain approve one --reason TEXT"
    state = status(config_path)
    assert state["champion"] is None
    told = {"run_id": "one", "source": "may", "window": "w", "challenger": version, "champion": None}
    assert state["waiting"] == [{**told, "overtaken": False, "command": command}]
    text = invoke("status", "--config", config_path)[1]
    assert "waiting for approval: 1" in text
    assert f"    {command}\n" in text


def test_command_that_status_names_promotes_and_the_run_is_told_anew(
    config_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    version = save(registry, b"1")
    run = waiting(config_path, "one-run", version)
    assert 'outcome="waiting"' in run.store.get(run.key("metrics.prom")).decode()
    code, output = invoke("approve", "one", "--reason", "  looked at it ", "--config", config_path)
    assert (code, output) == (0, f"version {version} promoted by ada (ledger record 2)\n")
    assert registry.ledger()[0].reason == "looked at it"
    state = status(config_path)
    assert (state["champion"], state["waiting"]) == (version, [])
    assert (state["runs"][0]["outcome"], state["runs"][0]["champion_after"]) == ("promoted", version)
    metrics = run.store.get(run.key("metrics.prom")).decode()
    assert 'outcome="promoted"' in metrics
    assert f'version="{version}"' in metrics


def test_verify_checks_the_promotion_against_the_approved_run(config_path: Path, registry: Registry):
    waiting(config_path, "one", save(registry, b"1"))
    approve(config_path, "one", "looked at it")
    assert "ledger: 2 records, unbroken" in verify_version(config_path, None)
    key = "models/m/ledger/0000000002.json"
    registry.store.put(key, registry.store.get(key).replace(b'"w"', b'"x"'))
    with pytest.raises(IntegrityError, match="record 2 is not the one that was written"):
        verify_version(config_path, None)


def test_run_that_was_overtaken_is_listed_until_its_window_was_run_again(config_path: Path, registry: Registry):
    slow, fast = save(registry, b"1"), save(registry, b"2")
    waiting(config_path, "slow", slow, window="w1")
    waiting(config_path, "fast", fast, window="w2")
    approve(config_path, "fast", "looked at it")
    (told,) = status(config_path)["waiting"]
    assert (told["run_id"], told["overtaken"], told["command"]) == ("slow", True, "retrain run w1")
    assert "(overtaken by another champion)" in invoke("status", "--config", config_path)[1]
    waiting(config_path, "again", save(registry, b"3"), champion=fast, window="w1")
    assert [one["run_id"] for one in status(config_path)["waiting"]] == ["again"]


@pytest.mark.parametrize("name", ["run", "none", ""], ids=["two", "none", "empty"])
def test_a_name_that_is_not_of_one_run_approves_none(config_path: Path, registry: Registry, name: str):
    waiting(config_path, "run-1", save(registry, b"1"))
    waiting(config_path, "run-2", save(registry, b"2"))
    with pytest.raises(ConfigurationError, match="runs that start with"):
        approve(config_path, name, "looked at it")
    assert registry.ledger() == []


@pytest.mark.parametrize("reason", ["", " ", "\n\t"])
def test_approval_without_a_reason_is_refused(config_path: Path, registry: Registry, reason: str):
    run = waiting(config_path, "one", save(registry, b"1"))
    with pytest.raises(ConfigurationError, match="empty reason"):
        approve(config_path, "one", reason)
    assert registry.ledger() == []
    assert run.need("report", RunReport).outcome == "waiting"


def test_command_line_wants_a_reason(config_path: Path, registry: Registry):
    waiting(config_path, "one", save(registry, b"1"))
    assert invoke("approve", "one", "--config", config_path)[0] == 2
    assert registry.ledger() == []
