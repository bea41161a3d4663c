"""How a run ends: a ledger record or none, a quarantine file, and what happens when another run was faster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.contracts import Failure, Outcome, Verdict, VerdictWord
from components.core.errors import IntegrityError, RunFailed, UnsoundStore
from components.core.plans import Decision
from components.core.rematches import Rematch
from components.core.runs import Run
from components.core.storage import DirectoryStore
from components.promote import step
from tests.unit.decision import no_rematch
from tests.unit.promotion import CHECK, begin, evaluation, file, judged, save, write_config

AGAIN = CHECK.model_copy(update={"sentence": "Judged again."})


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def manual_path(config_path: Path) -> Path:
    config_path.write_text(config_path.read_text() + "decision: {mode: manual}\n")
    return config_path


class Court:
    """Stands in for evaluation and gate: says the words that it was given, in turn, and files them as the gate does."""

    def __init__(
        self, run: Run, version: str, *words: VerdictWord, meanwhile: Callable[[Rematch], object] | None = None
    ):
        self.run, self.version, self.words, self.asked = run, version, list(words), list[Rematch]()
        self.meanwhile = meanwhile

    def __call__(self, rematch: Rematch) -> Verdict:
        self.asked.append(rematch)
        verdict = Verdict(
            verdict=self.words.pop(0), challenger=self.version, champion=rematch.champion, checks=(AGAIN,)
        )
        file(self.run, f"evaluate-1-rematch-{rematch.number}", evaluation(self.version, rematch.champion))
        file(self.run, f"gate-1-rematch-{rematch.number}", verdict)
        if self.meanwhile:
            self.meanwhile(rematch)
        return verdict


def test_promotion_is_one_record_and_repeating_the_step_adds_none(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    first = step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    assert (first.outcome, first.champion_after, first.ledger_number) == ("promoted", version, 1)
    assert step.promote(str(config_path), "one", "w", version, 1, no_rematch) == first
    assert [(r.kind, r.version, r.run_id) for r in registry.ledger()] == [("promotion", version, "one")]


@pytest.mark.parametrize("word", ["promote", "reject", "hold"])
def test_head_vouches_for_the_newest_record(config_path: Path, word: str):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None, word)
    if word == "promote":
        told = step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    else:
        told = step.record_outcome(str(config_path), "one", "w", word, 1)
    assert (told.ledger_number, registry.verify_ledger()) == (1, 1)
    key = "models/m/ledger/0000000001.json"
    run.store.put(key, run.store.get(key).replace(b'"w"', b'"x"'))
    assert len(registry.ledger()) == 1, "the newest record has no follower that would notice"
    with pytest.raises(IntegrityError, match="record 1 is not the one that was written"):
        registry.verify_ledger()


def test_step_cut_off_between_ledger_and_record_promotes_once(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    run.store.delete(run.key("outcome.json"))  # as if the pod was lost after the ledger was written
    again = step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    assert (again.outcome, again.ledger_number) == ("promoted", 1)
    assert len(registry.ledger()) == 1


class Race:
    """A run whose challenger passed while there was no champion, and others that promote before it does."""

    def __init__(self, config_path: Path, tries: int = 3) -> None:
        write_config(config_path.parent, promotion={"exports": [], "max_tries": tries})
        self.path = config_path
        self.run, self.registry = begin(config_path, "slow")
        self.mine = save(self.registry, b"mine")
        judged(self.run, self.mine, None)

    def other(self, version: str) -> str:
        """Another run promotes."""
        champion = self.registry.champion()
        before = champion.version if champion else None
        keys = {"window": "w", "run_id": None, "actor": "tests", "reason": "faster"}
        self.registry.append("promotion", version, expected_champion=before, **keys)
        return version

    def end(self, court: Callable[[Rematch], Verdict]) -> Outcome:
        return step.promote(str(self.path), "slow", "w", self.mine, 1, court)

    @property
    def ledger(self) -> list[tuple[str, str | None]]:
        return [(record.kind, record.version) for record in self.registry.ledger()]


@pytest.fixture
def lost(config_path: Path) -> Race:
    race = Race(config_path)
    race.other("b" * 32)
    return race


def test_slower_run_is_judged_against_the_faster_champion_and_promoted(lost: Race):
    court = Court(lost.run, lost.mine, "promote")
    outcome = lost.end(court)
    assert court.asked == [Rematch(number=1, champion="b" * 32)]
    assert (outcome.outcome, outcome.champion_before, outcome.champion_after) == ("promoted", "b" * 32, lost.mine)
    assert lost.ledger == [("promotion", "b" * 32), ("promotion", lost.mine)]
    told = "Passed against no champion; bbbbbbbbbbbb was promoted meanwhile. Against it: Judged again."
    assert (outcome.reason, lost.registry.ledger()[-1].reason) == (told, told)


@pytest.mark.parametrize(("word", "kind", "outcome"), [("reject", "rejection", "rejected"), ("hold", "hold", "held")])
def test_what_does_not_pass_against_the_faster_champion_is_on_record(
    lost: Race, word: VerdictWord, kind: str, outcome: str
):
    told = lost.end(Court(lost.run, lost.mine, word))
    assert (told.outcome, told.champion_after, told.ledger_number) == (outcome, "b" * 32, 2)
    assert lost.ledger == [("promotion", "b" * 32), (kind, lost.mine)]
    assert told.reason.startswith("Passed against no champion; bbbbbbbbbbbb was promoted meanwhile.")


def test_after_the_last_try_the_challenger_is_held(lost: Race):
    versions = iter(("c" * 32, "d" * 32, "e" * 32))
    court = Court(lost.run, lost.mine, "promote", "promote", "promote", meanwhile=lambda _: lost.other(next(versions)))
    told = lost.end(court)
    assert [rematch.champion for rematch in court.asked] == ["b" * 32, "c" * 32]  # with the first, three tries
    assert (told.outcome, told.champion_after, told.ledger_number) == ("held", "d" * 32, None)
    assert "Other runs promoted first, 3 times" in told.reason
    assert lost.mine not in [version for _, version in lost.ledger]


def test_one_try_means_no_rematch(config_path: Path):
    race = Race(config_path, tries=1)
    race.other("b" * 32)
    assert race.end(no_rematch).outcome == "held"


def test_turned_down_and_overtaken_again_stays_turned_down(lost: Race):
    told = lost.end(Court(lost.run, lost.mine, "reject", meanwhile=lambda _: lost.other("c" * 32)))
    assert (told.outcome, told.champion_after, told.ledger_number) == ("rejected", "c" * 32, None)
    assert lost.ledger == [("promotion", "b" * 32), ("promotion", "c" * 32)]


def test_challenger_that_another_run_has_promoted_is_not_judged_against_itself(config_path: Path):
    race = Race(config_path)
    race.other(race.mine)
    told = race.end(no_rematch)
    assert (told.outcome, told.champion_after) == ("held", race.mine)
    assert "champion already" in told.reason


@pytest.mark.parametrize("later", [False, True], ids=["at once", "after another promotion"])
@pytest.mark.parametrize("made_by_another_run", [False, True], ids=["parent", "itself"])
def test_run_under_way_does_not_bring_back_what_a_person_rolled_back_from(
    config_path: Path, made_by_another_run: bool, later: bool
):
    run, registry = begin(config_path, "slow")
    old = save(registry, b"old")
    bad = save(registry, b"bad", old)
    mine, against = (bad, old) if made_by_another_run else (save(registry, b"mine", bad), bad)
    keys = {"window": "w", "run_id": "fast", "actor": "tests", "reason": "because"}
    registry.append("promotion", old, expected_champion=None, **keys)
    registry.append("promotion", bad, expected_champion=old, **keys)
    judged(run, mine, against)
    registry.append("rollback", old, expected_champion=bad, **keys)
    if later:
        registry.append("promotion", "c" * 32, expected_champion=old, **keys)
    told = step.promote(str(config_path), "slow", "w", mine, 1, no_rematch)
    assert (told.outcome, told.champion_after, told.ledger_number) == ("held", "c" * 32 if later else old, None)
    assert "rolled back from" in told.reason
    assert registry.champion().version == told.champion_after


def test_step_cut_off_in_a_rematch_goes_on_from_it(lost: Race):
    class PodLost(Exception):
        pass

    def lose_pod(_: Rematch) -> None:
        raise PodLost

    with pytest.raises(PodLost):
        lost.end(Court(lost.run, lost.mine, "promote", meanwhile=lose_pod))
    told = lost.end(no_rematch)  # the verdict is on file: it is not asked for again
    assert (told.outcome, told.champion_before) == ("promoted", "b" * 32)
    lost.run.store.delete(lost.run.key("outcome.json"))
    assert lost.end(no_rematch) == told
    assert len(lost.ledger) == 2


class Forgetful(DirectoryStore):
    """Says that it created what was there already, and overwrites it: as rclone's S3 server does."""

    def put_new(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


@pytest.mark.parametrize("word", ["promote", "reject", "hold"])
def test_nothing_enters_a_ledger_on_a_store_that_keeps_no_condition(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, word: VerdictWord
):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None, word)
    monkeypatch.setattr("components.core.runs.open_store", lambda config: Forgetful(Path(config.uri)))
    end = {
        "promote": lambda path: step.promote(path, "one", "w", version, 1, no_rematch),
        "reject": lambda path: step.record_outcome(path, "one", "w", "reject", 1),
        "hold": lambda path: step.record_outcome(path, "one", "w", "hold", 1),
    }[word]
    with pytest.raises(UnsoundStore, match="created an object under a key that was taken, and overwrote the first one"):
        end(str(config_path))
    assert registry.ledger() == []
    assert run.need("failure-outcome", Failure).exit_code == 2


def test_tampered_challenger_is_not_promoted(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    run.store.put(f"models/m/versions/{version}/weights", b"2")
    with pytest.raises(IntegrityError, match="weights"):
        step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    assert registry.ledger() == []
    assert run.store.head("runs/one/failure-outcome.json"), "the reason is filed for the report"


def test_manual_mode_leaves_the_challenger_waiting_and_names_the_command(manual_path: Path):
    run, registry = begin(manual_path, "one")
    champion, version = save(registry, b"0"), save(registry, b"1")
    keys = {"window": "w", "run_id": "zero", "actor": "tests", "reason": "because"}
    first = registry.append("promotion", champion, expected_champion=None, **keys)
    judged(run, version, champion)
    told = step.promote(str(manual_path), "one", "w", version, 1, no_rematch)
    assert (told.outcome, told.champion_before, told.champion_after) == ("waiting", champion, champion)
    assert told.ledger_number is None
    assert f"Challenger {version[:12]} waits for approval (retrain approve one --reason TEXT)" in told.reason
    assert registry.ledger() == [first]
    assert run.need("outcome", Outcome) == told


def test_mode_is_the_one_of_the_runs_beginning(config_path: Path):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    config_path.write_text(config_path.read_text() + "decision: {mode: manual}\n")
    assert step.promote(str(config_path), "one", "w", version, 1, no_rematch).outcome == "promoted"


def test_tampered_challenger_does_not_wait_either(manual_path: Path):
    run, registry = begin(manual_path, "one")
    version = save(registry, b"1")
    judged(run, version, None)
    run.store.put(f"models/m/versions/{version}/weights", b"2")
    with pytest.raises(IntegrityError, match="weights"):
        step.promote(str(manual_path), "one", "w", version, 1, no_rematch)
    assert run.read("outcome", Outcome) is None


@pytest.mark.parametrize("word", ["reject", "hold", "escalate"])
def test_challenger_that_the_gate_did_not_pass_is_not_promoted(config_path: Path, word: str):
    run, registry = begin(config_path, "one")
    version = save(registry, b"1")
    judged(run, version, None, word)
    with pytest.raises(RunFailed, match=f"'{word}' of {version}"):
        step.promote(str(config_path), "one", "w", version, 1, no_rematch)
    assert registry.ledger() == []
    assert run.read("outcome", Outcome) is None
    assert run.need("failure-outcome", Failure).exit_code == RunFailed.exit_code


def test_challenger_that_was_not_judged_is_not_promoted(config_path: Path):
    run, registry = begin(config_path, "one")
    passed, other = save(registry, b"1"), save(registry, b"2")
    judged(run, passed, None)
    with pytest.raises(RunFailed, match=f"{passed}, and {other} was to be promoted"):
        step.promote(str(config_path), "one", "w", other, 1, no_rematch)
    assert registry.ledger() == []
    assert step.promote(str(config_path), "one", "w", passed, 1, no_rematch).champion_after == passed


@pytest.mark.parametrize(("word", "kind", "outcome"), [("reject", "rejection", "rejected"), ("hold", "hold", "held")])
def test_challenger_that_is_turned_down_is_in_the_ledger_and_champion_stays(
    config_path: Path, word: str, kind: str, outcome: str
):
    run, registry = begin(config_path, "one")
    champion, version = save(registry, b"0"), save(registry, b"1")
    judged(run, champion, None)
    step.promote(str(config_path), "one", "w", champion, 1, no_rematch)
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
