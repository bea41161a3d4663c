"""When something is taken, worked by hand: one look, or a few, at times of our choosing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from components.core.claims import ClaimState, OpenClaim, Request
from components.core.config import TriggerConfig
from components.core.contracts import RunArguments
from components.ingest.deliveries import Upload
from pipelines.trigger.watcher import Follow, Launch, Look, Memory, Moment, Retry, Take, Wait, watch

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = TriggerConfig(
    quiet_minutes=10, min_images=100, max_wait_minutes=60, cool_down_minutes=5, max_failures=3, pause_minutes=30
)


def at(seconds: float, skew: float = 0.0) -> Moment:
    return Moment(calendar=START + timedelta(seconds=seconds + skew), seconds=1000.0 + seconds)


def upload(name: str, images: int | None = 10, *, changed: float = 0.0, marked: bool = True) -> Upload:
    newest = START + timedelta(seconds=changed)
    return Upload(uri=name, images=images, newest=newest, marked=marked, fingerprint=f"{images} at {changed}")


NOW = at(0)


def look(
    *uploads: Upload, state: ClaimState | None = None, now: Moment = NOW, memory: Memory | None = None, **policy: Any
) -> Look:
    changed = POLICY.model_copy(update=policy)
    return watch(uploads, state or ClaimState(), changed, memory or Memory(), now, me="me")


def claim(**changes: Any) -> OpenClaim:
    known = {"number": 4, "nonce": "n", "deliveries": ("x",), "arguments": RunArguments(source="new"), "attempt": 1}
    return OpenClaim(**{**known, "holder": "other", "since": START, **changes})


def taken(found: Look) -> tuple[str, ...]:
    assert isinstance(found.decision, Take), found.decision
    return found.decision.deliveries


def reason(found: Look) -> str:
    assert isinstance(found.decision, Wait), found.decision
    return found.decision.why


def test_nothing_is_nothing_new() -> None:
    assert reason(look()) == "nothing new"


def test_enough_images_are_taken_at_once_and_together() -> None:
    assert taken(look(upload("b", 60), upload("a", 40))) == ("a", "b")


def test_too_few_images_wait_for_more() -> None:
    found = look(upload("a", 60), upload("b", 39, changed=-600), now=at(0))
    assert reason(found) == "99 of 100 images so far, waiting for more for another 3000 s"
    assert found.complete == {"a": 0.0, "b": 600.0}


def test_too_few_images_wait_no_longer_than_that() -> None:
    few = upload("a", 1)
    assert isinstance(look(few, now=at(3599)).decision, Wait)
    assert taken(look(few, now=at(3600))) == ("a",)


def test_tables_and_archives_count_as_enough() -> None:
    assert taken(look(upload("a", None), upload("b", 1))) == ("a", "b")


def test_incomplete_delivery_is_not_taken_with_the_others() -> None:
    found = look(upload("a", 500), upload("b", 500, marked=False))
    assert (taken(found), found.incomplete) == (("a",), ("b",))


def test_delivery_without_marker_is_complete_when_it_was_seen_unchanged_long_enough() -> None:
    quiet = upload("a", 500, marked=False, changed=-100_000)
    first = look(quiet, now=at(0))
    assert reason(first) == "nothing new", "it may just be growing: one look cannot tell"
    assert reason(look(quiet, now=at(599), memory=first.memory)) == "nothing new"
    assert taken(look(quiet, now=at(600), memory=first.memory)) == ("a",)


def test_delivery_that_grows_has_to_be_quiet_anew() -> None:
    memory = look(upload("a", 500, marked=False), now=at(0)).memory
    memory = look(upload("a", 501, marked=False), now=at(500), memory=memory).memory
    assert reason(look(upload("a", 501, marked=False), now=at(1099), memory=memory)) == "nothing new"
    assert taken(look(upload("a", 501, marked=False), now=at(1100), memory=memory)) == ("a",)


def test_clock_that_jumps_ahead_makes_nothing_complete() -> None:
    memory = look(upload("a", 500, marked=False), now=at(0)).memory
    assert reason(look(upload("a", 500, marked=False), now=at(30, skew=3600), memory=memory)) == "nothing new"


def test_clock_that_falls_back_makes_nothing_wait_longer() -> None:
    memory = look(upload("a", 1), now=at(0)).memory
    assert taken(look(upload("a", 1), now=at(3600, skew=-3600), memory=memory)) == ("a",)


def test_only_the_marker_counts_where_nothing_may_be_quiet() -> None:
    quiet = upload("a", 500, marked=False)
    memory = look(quiet, quiet_minutes=None).memory
    assert reason(look(quiet, now=at(1e6), memory=memory, quiet_minutes=None)) == "nothing new"


def test_what_was_taken_is_not_taken_again() -> None:
    state = ClaimState(taken={"a": 0})
    assert reason(look(upload("a", 500), state=state)) == "nothing new"
    assert taken(look(upload("a", 500), upload("b", 500), state=state)) == ("b",)


def test_delivery_that_was_refused_with_others_goes_alone() -> None:
    state = ClaimState(alone={"a", "b"})
    assert taken(look(upload("a", 500), upload("b", 500), state=state)) == ("a",)
    assert taken(look(upload("a", 500), upload("b", 500), upload("0", 500), state=state)) == ("a",)


def test_memory_forgets_what_is_gone() -> None:
    memory = look(upload("a", 1), upload("b", 1, marked=False)).memory
    assert "a" in memory.seen
    kept = look(memory=memory).memory.seen
    assert set(memory.seen) - set(kept) == {"a", ("b", "1 at 0.0")}


def test_next_run_waits_for_the_cool_down() -> None:
    state = ClaimState(ended_at=START)
    assert reason(look(upload("a", 500), state=state, now=at(299))) == "cooling down for another 1 s"
    assert taken(look(upload("a", 500), state=state, now=at(300))) == ("a",)


def test_end_in_the_future_cools_down_no_longer() -> None:
    """Another replica's clock was an hour ahead."""
    state = ClaimState(ended_at=START + timedelta(hours=1))
    memory = look(state=state).memory
    assert taken(look(upload("a", 500), state=state, now=at(300), memory=memory)) == ("a",)


def test_request_is_taken_alone_and_at_once() -> None:
    asked = RunArguments(source="s", strategy="retrain")
    state = ClaimState(requests=(Request(actor="ada", arguments=asked),), ended_at=START)
    assert look(upload("a", 500), state=state).decision == Take(deliveries=("s",), arguments=asked)


@pytest.mark.parametrize(("failures", "minutes"), [(2, 0), (3, 30), (4, 60), (5, 120), (9, 24 * 60), (5000, 24 * 60)])
def test_pause_grows_with_the_failures(failures: int, minutes: int) -> None:
    state = ClaimState(failures=failures, failed_at=START)
    for asked in (ClaimState(), ClaimState(requests=(Request(actor="ada", arguments=RunArguments(source="s")),))):
        state.requests = asked.requests
        paused = look(upload("a", 500), state=state, now=at(60 * minutes - 1))
        assert paused.paused == (minutes > 0)
        assert isinstance(paused.decision, Wait if minutes else Take)
        after = look(upload("a", 500), state=state, now=at(60 * minutes))
        assert (after.paused, isinstance(after.decision, Take)) == (False, True)


def test_run_under_way_is_followed_and_nothing_else_started() -> None:
    current = claim(run_id="r")
    assert look(upload("a", 500), state=ClaimState(open=current)).decision == Follow(claim=current, run_id="r")


def test_failed_run_is_tried_again_at_once_until_there_are_too_many() -> None:
    current = claim(failed=True, reason="A pod was lost.")
    state = ClaimState(open=current, failures=2, failed_at=START, ended_at=START)
    assert look(state=state, now=at(1)).decision == Retry(claim=current)
    state.failures = 3
    assert reason(look(state=state, now=at(60))) == "A pod was lost. It is tried again in 1740 s."
    assert look(state=state, now=at(1800)).decision == Retry(claim=current)


def test_own_claim_is_launched_at_once() -> None:
    current = claim(holder="me")
    assert look(state=ClaimState(open=current)).decision == Launch(claim=current, takeover=False)


def test_claim_of_another_is_taken_over_when_its_lease_has_ended() -> None:
    state = ClaimState(open=claim())
    assert reason(look(state=state, now=at(120))) == "other is starting a run"
    assert look(state=state, now=at(120.5)).decision == Launch(claim=claim(), takeover=True)


def test_lease_ends_although_the_clock_fell_back() -> None:
    state = ClaimState(open=claim())
    memory = look(state=state).memory
    assert look(state=state, now=at(121, skew=-3600), memory=memory).decision == Launch(claim=claim(), takeover=True)
