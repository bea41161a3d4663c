"""The log of claims, worked by hand; what it does under fire is in `test_trigger_machine`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.core.claims import Attempt, Claim, ClaimLog, ClaimState, ClosedClaim, Ended, Entry, Request, Started
from components.core.contracts import Failure, RunArguments
from components.core.errors import ConfigurationError, IntegrityError
from components.core.run_claims import abandon_claim, claim_number, claimed, end_claim, join_claim, judge_run, take_new
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore

ASKED = RunArguments(source="new", strategy="retrain", gpu_type="nvidia.com/gpu", gpu_count="2")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def log_of(store: DirectoryStore) -> ClaimLog:
    """As another process would open it."""
    return ClaimLog(store, "m", lambda: NOW)


def write(store: DirectoryStore, *entries: Entry) -> ClaimLog:
    log = log_of(store)
    for entry in entries:
        assert log.enter(lambda state, entry=entry: entry)
    return log


def claim(*deliveries: str, run_id: str | None = None) -> Claim:
    return Claim(actor="a", deliveries=deliveries, arguments=RunArguments(source="new"), run_id=run_id)


def started(number: int, run_id: str) -> Started:
    return Started(actor="a", claim=number, run_id=run_id)


def ended(number: int, run_id: str, result: str = "succeeded") -> Ended:
    return Ended(actor="a", claim=number, run_id=run_id, result=result, reason="why")  # type: ignore[arg-type]


def request(source: str, *, again: bool = False) -> Request:
    return Request(actor="a", arguments=RunArguments(source=source), again=again)


def test_a_claim_from_its_beginning_to_its_end(store: DirectoryStore) -> None:
    state = write(store, claim("x", "y"), started(0, "r"), ended(0, "r")).read()
    assert (state.entries, state.open, state.taken) == (3, None, {"x": 0, "y": 0})
    assert state.closed == {
        0: ClosedClaim(number=0, deliveries=("x", "y"), run_id="r", result="succeeded", reason="why")
    }
    assert (state.counts, state.failures, state.ended_at) == ({"succeeded": 1}, 0, NOW)


def test_another_process_reads_the_same(store: DirectoryStore) -> None:
    ours = write(store, claim("x"), started(0, "r"), ended(0, "r", "failed"))
    theirs = log_of(store)
    assert vars(theirs.read()) == vars(ours.read())
    write(store, Attempt(actor="b", claim=0, attempt=2))
    state = theirs.read()
    assert state.open == ours.read().open
    assert state.open is not None
    assert (state.open.attempt, state.open.holder) == (2, "b")


def test_failed_run_leaves_its_deliveries_taken_and_owed(store: DirectoryStore) -> None:
    state = write(store, claim("x"), started(0, "r"), ended(0, "r", "failed")).read()
    assert state.open is not None
    assert (state.open.failed, state.open.run_id, state.open.attempt, state.open.reason) == (True, None, 1, "why")
    assert (state.failures, state.failed_at, state.next_batch(["x", "z"])) == (1, NOW, ("z",))


def test_success_ends_the_count_of_failures(store: DirectoryStore) -> None:
    again = Attempt(actor="a", claim=0, attempt=2)
    log = write(store, claim("x"), started(0, "r"), ended(0, "r", "failed"), again, started(0, "s"), ended(0, "s"))
    assert (log.read().failures, log.read().counts) == (0, {"failed": 1, "succeeded": 1})
    assert log.read().run_claims == {"r": 0, "s": 0}


def test_delivery_refused_alone_stays_refused(store: DirectoryStore) -> None:
    state = write(store, claim("x"), started(0, "r"), ended(0, "r", "refused")).read()
    assert (state.open, state.closed[0].result, state.next_batch(["x"]), state.failures) == (None, "refused", (), 0)


def test_deliveries_refused_together_are_tried_one_by_one(store: DirectoryStore) -> None:
    log = write(store, claim("x", "y"), started(0, "r"), ended(0, "r", "refused"))
    assert log.read().next_batch(["x", "y"]) == ("x",)
    assert log.read().next_batch(["x", "y", "a"]) == ("x",), "before what came later, or they might wait for ever"
    write(store, claim("x"), started(3, "s"), ended(3, "s"))
    assert log.read().next_batch(["x", "y"]) == ("y",)
    assert log.read().alone == {"y"}


def test_request_is_taken_with_its_source(store: DirectoryStore) -> None:
    log = write(store, request("x"), request("y"))
    assert [r.arguments.source for r in log.read().requests] == ["x", "y"]
    write(store, claim("x"))
    assert [r.arguments.source for r in log.read().requests] == ["y"]


def test_request_again_gives_a_source_back(store: DirectoryStore) -> None:
    log = write(store, claim("x"), started(0, "r"), ended(0, "r"), request("x", again=True))
    assert log.read().taken == {}
    write(store, claim("x"))
    assert log.read().taken == {"x": 4}


@pytest.mark.parametrize(
    ("before", "entry"),
    [
        ((claim("x"),), claim("y")),  # one at a time
        ((claim("x"), started(0, "r"), ended(0, "r")), claim("x", "y")),  # x was taken
        ((claim("x"), started(0, "r")), started(0, "s")),  # it has a run
        ((claim("x"),), started(1, "r")),
        ((), started(0, "r")),
        ((claim("x"),), ended(0, "r")),
        ((claim("x"), started(0, "r")), ended(0, "s")),
        ((claim("x"),), Attempt(actor="a", claim=0, attempt=2)),  # the first has not failed
        ((claim("x"), started(0, "r")), Attempt(actor="a", claim=0, attempt=1)),  # its run is under way
        ((claim("x"), started(0, "r"), ended(0, "r", "failed")), Attempt(actor="a", claim=0, attempt=1)),
        ((claim("x"), started(0, "r"), ended(0, "r")), request("x")),  # not without --again
    ],
)
def test_what_does_not_follow_is_refused(store: DirectoryStore, before: Sequence[Entry], entry: Entry) -> None:
    log = write(store, *before)
    with pytest.raises(AssertionError, match="does not follow"):
        log.enter(lambda state: entry)
    assert log_of(store).read().entries == len(before)


def test_entry_is_made_anew_when_another_was_faster(store: DirectoryStore) -> None:
    slow, decided = log_of(store), list[int]()

    def make(state: ClaimState) -> Entry | None:
        decided.append(state.entries)
        if len(decided) == 1:
            write(store, request("z"))  # somebody is faster
        return claim("y")

    entry = slow.enter(make)
    assert decided == [0, 1]
    assert entry is not None
    assert (entry.number, slow.read().taken) == (1, {"y": 1})


def test_many_writers_leave_no_gap_and_lose_nothing(store: DirectoryStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write(store, request(f"s{n}")), range(40)))
    state = log_of(store).read()
    assert state.entries == 40
    assert {r.arguments.source for r in state.requests} == {f"s{n}" for n in range(40)}


@pytest.mark.parametrize("damage", ["gap", "no JSON", "unknown kind", "other number"])
def test_damaged_log_is_named(store: DirectoryStore, damage: str) -> None:
    write(store, claim("x"), started(0, "r"), ended(0, "r"))
    key = "claims/m/0000000001.json"
    if damage == "gap":
        store.delete(key)
    else:
        data = store.get(key).decode()
        changed = {
            "no JSON": data[:-5],
            "unknown kind": data.replace("started", "begun"),
            "other number": data.replace('"number": 1', '"number": 7'),
        }
        store.put(key, changed[damage].encode())
    with pytest.raises(IntegrityError, match=r"claims/m/000000000[17]\.json"):
        log_of(store).read()


def test_what_is_no_entry_by_its_name_is_passed_over(store: DirectoryStore) -> None:
    write(store, claim("x"))
    store.put("claims/m/readme.txt", b"what this is")
    store.put("claims/m/backup/0000000009.json", b"{}")
    assert log_of(store).read().entries == 1


def test_field_of_a_later_release_is_passed_over(store: DirectoryStore) -> None:
    write(store, claim("x"))
    key = "claims/m/0000000000.json"
    store.put(key, store.get(key).replace(b'"actor"', b'"mood": "good",\n "actor"'))
    assert log_of(store).read().taken == {"x": 0}


# What a run does.


@pytest.mark.parametrize(
    ("source", "number"), [("batch:12", 12), ("batch:0", 0), ("batch:", None), ("batch:x", None), ("12", None)]
)
def test_claim_that_a_source_names(source: str, number: int | None) -> None:
    assert claim_number(source) == number


def test_first_run_to_join_is_the_one(store: DirectoryStore) -> None:
    write(store, claim("x"))
    assert join_claim(log_of(store), 0, "r") == ("x",)
    assert join_claim(log_of(store), 0, "r") == ("x",), "its pod was started again"
    with pytest.raises(ConfigurationError, match="run r is at batch:0"):
        join_claim(log_of(store), 0, "s")


def test_claim_that_is_done_with_may_be_looked_at_again(store: DirectoryStore) -> None:
    write(store, claim("x"), started(0, "r"), ended(0, "r"))
    assert join_claim(log_of(store), 0, "clone") == ("x",)
    assert log_of(store).read().entries == 3


def test_run_started_by_hand_is_the_next_attempt_of_a_claim_that_failed(store: DirectoryStore) -> None:
    log = write(store, claim("x"), started(0, "r"), ended(0, "r", "failed"))
    assert join_claim(log_of(store), 0, "by-hand") == ("x",)
    assert log.read().run_claims == {"r": 0, "by-hand": 0}


def test_claim_that_does_not_exist(store: DirectoryStore) -> None:
    for find in (lambda: join_claim(log_of(store), 3, "r"), lambda: claimed(log_of(store), 3)):
        with pytest.raises(ConfigurationError, match="no claim batch:3"):
            find()


def test_run_takes_what_is_new_and_the_same_again(store: DirectoryStore) -> None:
    assert take_new(log_of(store), lambda taken: ["b", "a"], "r", ASKED) == ("a", "b")
    assert take_new(log_of(store), lambda taken: ["b", "a", "c"], "r", ASKED) == ("a", "b")
    with pytest.raises(ConfigurationError, match="run r is at batch:0 since 2026-01-01 00:00 UTC"):
        take_new(log_of(store), lambda taken: ["c"], "s", ASKED)
    write(store, ended(0, "r"))
    assert take_new(log_of(store), lambda taken: ["a", "c"], "s", ASKED) == ("c",)
    write(store, ended(2, "s"))
    assert take_new(log_of(store), lambda taken: ["d"], "r", ASKED) == ("a", "b"), "retried from the UI after its end"


def test_run_on_what_is_new_takes_over_what_failed(store: DirectoryStore) -> None:
    write(store, claim("x"), started(0, "r"), ended(0, "r", "failed"))
    assert take_new(log_of(store), lambda taken: ["y"], "s", ASKED) == ("x",)


def test_run_on_what_is_new_leaves_a_claim_alone_whose_run_is_being_started(store: DirectoryStore) -> None:
    write(store, claim("x"))
    with pytest.raises(ConfigurationError, match="a run that a is starting is at batch:0"):
        take_new(log_of(store), lambda taken: ["y"], "s", ASKED)


def test_run_on_what_is_new_is_started_again_as_it_was_and_leaves_requests_alone(store: DirectoryStore) -> None:
    write(store, request("x"))
    assert take_new(log_of(store), lambda taken: ["x", "y"], "r", ASKED) == ("y",)
    state = log_of(store).read()
    assert state.open is not None
    assert state.open.arguments == ASKED
    assert [r.arguments.source for r in state.requests] == ["x"]


def test_claim_that_was_given_up_is_joined_by_no_run(store: DirectoryStore) -> None:
    write(store, claim("x"))
    abandon_claim(log_of(store), 0, "ada", "gone")
    with pytest.raises(ConfigurationError, match="batch:0 was given up: gone"):
        join_claim(log_of(store), 0, "late")


def test_nothing_new_leaves_no_entry(store: DirectoryStore) -> None:
    assert take_new(log_of(store), lambda taken: [], "r", ASKED) == ()
    assert log_of(store).read().entries == 0


def test_claim_that_a_person_gives_up_is_done_with(store: DirectoryStore) -> None:
    log = write(store, claim("x"), started(0, "r"), ended(0, "r", "failed"))
    closed = abandon_claim(log_of(store), 0, "ada", "gone")
    assert (closed.result, closed.run_id, closed.reason) == ("abandoned", None, "gone")
    state = log.read()
    assert (state.open, state.failures, state.next_batch(["x", "y"])) == (None, 0, ("y",))
    end_claim(log_of(store), Run(store, "r"), succeeded=True)
    assert log.read().entries == 4
    with pytest.raises(ConfigurationError, match="batch:0 is not under way"):
        abandon_claim(log_of(store), 0, "ada", "again")


def test_run_at_work_whose_claim_is_given_up_says_nothing_more(store: DirectoryStore) -> None:
    write(store, claim("x"), started(0, "r"))
    abandon_claim(log_of(store), 0, "ada", "gone")
    write(store, claim("y"))
    end_claim(log_of(store), Run(store, "r"), succeeded=True)
    assert log_of(store).read().entries == 4


def fail(store: DirectoryStore, run_id: str, step: str, error: str) -> Run:
    run = Run(store, run_id)
    failure = Failure(step=step, error=error, message="told", exit_code=2)
    run.replace(StepRecord(step=f"failure-{step}", started=NOW, seconds=0.0, document=failure))
    return run


@pytest.mark.parametrize(
    ("step", "error", "result"),
    [
        ("ingest", "SourceError", "refused"),
        ("ingest", "StoreUnreachable", "failed"),
        ("train-1", "SourceError", "failed"),
    ],
)
def test_only_a_delivery_that_cannot_be_read_is_refused(
    store: DirectoryStore, step: str, error: str, result: str
) -> None:
    found, reason = judge_run(fail(store, "r", step, error), succeeded=False)
    assert found == result
    assert "told" in reason


def test_run_that_says_nothing_has_failed(store: DirectoryStore) -> None:
    assert judge_run(Run(store, "r"), succeeded=False)[0] == "failed"
    assert judge_run(fail(store, "r", "ingest", "SourceError"), succeeded=True) == ("succeeded", "")


def test_run_ends_its_own_claim_once_and_no_other(store: DirectoryStore) -> None:
    log = write(store, claim("x"), started(0, "r"))
    end_claim(log_of(store), Run(store, "s"), succeeded=True)
    assert log.read().open is not None
    for _ in range(2):
        end_claim(log_of(store), Run(store, "r"), succeeded=True)
    assert (log.read().open, log.read().entries) == (None, 3)
