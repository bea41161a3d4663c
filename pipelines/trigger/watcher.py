"""When to take what was delivered, and what to do about the claim under way: values in, values out.

The source shows what there is (`Upload`), the log of claims what was taken and how runs ended, the policy how long to
wait. What is remembered between two looks (`Memory`) may be lost: then a delivery without a marker has to be quiet
anew, and nothing else changes.

How long something has waited is the longer of what its time stamp says and of what this process has seen, so a clock
that jumps can only make a run come sooner. Whether an upload is quiet goes by what was seen alone, so a jump cannot
make half of one look complete.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from components.core.claims import ClaimState, OpenClaim
from components.core.config import TriggerConfig
from components.core.contracts import RunArguments
from components.ingest.deliveries import Upload

LONGEST_PAUSE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Now: by the calendar, which may jump, and in seconds of a clock that does not and means nothing elsewhere."""

    calendar: datetime
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """When each thing was first seen, in seconds of `Moment`: (delivery, fingerprint), or what an age is asked of."""

    seen: Mapping[Hashable, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do, and why."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Take:
    """Claim these deliveries, to start a run on them: with these arguments where somebody asked for it."""

    deliveries: tuple[str, ...]
    arguments: RunArguments | None = None


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The run of the claim failed: claim its next attempt."""

    claim: OpenClaim


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Find or start the run of the claim's attempt, which is claimed. `takeover`: by somebody who has not done it in
    time, so the attempt must be claimed anew before a run is started."""

    claim: OpenClaim
    takeover: bool


@dataclass(frozen=True, kw_only=True)
class Follow:
    """See how the run of the claim is getting on."""

    claim: OpenClaim
    run_id: str


Decision = Wait | Take | Retry | Launch | Follow


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look comes to.

    `complete` are the deliveries that are and that no claim has taken, each with the seconds since it last changed;
    `incomplete` the others. `paused` says that too many runs failed in a row for another one to be started yet.
    """

    decision: Decision
    complete: dict[str, float]
    incomplete: tuple[str, ...]
    paused: bool
    memory: Memory


def watch(
    uploads: Iterable[Upload], state: ClaimState, policy: TriggerConfig, memory: Memory, now: Moment, me: str
) -> Look:
    """Decide what a trigger does next.

    Args:
        uploads: What the source shows.
        state: What the log of claims says.
        policy: How long to wait, and for what.
        memory: Of the last look.
        now: The time.
        me: The name that this process enters into the log.
    """
    ages = _Ages(memory, now)
    untaken = {upload.uri: upload for upload in uploads if upload.uri not in state.taken}
    complete = {
        upload.uri: ages.of(upload.uri, upload.newest)
        for upload in untaken.values()
        if _is_complete(upload, policy, ages)
    }
    pause = _pause_left(state, policy, ages)
    cool_down = 60 * policy.cool_down_minutes - ages.of(("ended", state.ended_at), state.ended_at)
    if claim := state.open:
        decision = _about(claim, pause, policy, ages, me)
    elif pause > 0:
        decision = Wait(why=f"{state.failures} runs failed in a row: none is started for another {pause:.0f} s")
    elif state.requests:
        first = state.requests[0].arguments
        decision = Take(deliveries=(first.source,), arguments=first)
    elif cool_down > 0 and state.ended_at is not None:
        decision = Wait(why=f"cooling down for another {cool_down:.0f} s")
    else:
        decision = _take(state.next_batch(complete), complete, untaken, policy)
    return Look(
        decision=decision,
        complete=complete,
        incomplete=tuple(sorted(untaken.keys() - complete.keys())),
        paused=pause > 0,
        memory=Memory(seen=ages.seen),
    )


class _Ages:
    """Tells for how long things have been there, and remembers what it was asked."""

    def __init__(self, memory: Memory, now: Moment) -> None:
        self._before, self._now = memory.seen, now
        self.seen: dict[Hashable, float] = {}

    def seen_for(self, key: Hashable) -> float:
        """Seconds since this process saw it first."""
        self.seen[key] = self._before.get(key, self._now.seconds)
        return self._now.seconds - self.seen[key]

    def of(self, key: Hashable, stamp: datetime | None) -> float:
        """Seconds since it happened, as its time stamp says or since it was seen first, whichever is longer."""
        told = (self._now.calendar - stamp).total_seconds() if stamp else 0.0
        return max(told, self.seen_for(key))


def _is_complete(upload: Upload, policy: TriggerConfig, ages: _Ages) -> bool:
    if upload.marked or not upload.fingerprint:
        return upload.marked
    unchanged = ages.seen_for((upload.uri, upload.fingerprint))
    return policy.quiet_minutes is not None and unchanged >= 60 * policy.quiet_minutes


def _pause_left(state: ClaimState, policy: TriggerConfig, ages: _Ages) -> float:
    """Seconds for which no run is started because too many failed in a row; 0 or less for none."""
    since = ages.of(("failed", state.failed_at), state.failed_at)
    beyond = state.failures - policy.max_failures
    return min(60 * policy.pause_minutes * 2.0 ** min(beyond, 30), LONGEST_PAUSE_SECONDS) - since if beyond >= 0 else 0


def _about(claim: OpenClaim, pause: float, policy: TriggerConfig, ages: _Ages, me: str) -> Decision:
    """What to do about the claim under way."""
    if claim.run_id is not None:
        return Follow(claim=claim, run_id=claim.run_id)
    if claim.failed:
        return Retry(claim=claim) if pause <= 0 else Wait(why=f"{claim.reason} It is tried again in {pause:.0f} s.")
    if claim.holder == me:
        return Launch(claim=claim, takeover=False)
    held = ages.of(("held", claim.number, claim.attempt, claim.since), claim.since)
    if held <= policy.lease_seconds:
        return Wait(why=f"{claim.holder} is starting a run")
    return Launch(claim=claim, takeover=True)


def _take(
    batch: Sequence[str], complete: Mapping[str, float], uploads: Mapping[str, Upload], policy: TriggerConfig
) -> Decision:
    """Take a batch once it is large enough, or its oldest delivery has waited long enough."""
    if not batch:
        return Wait(why="nothing new")
    counts = [uploads[uri].images for uri in batch]
    images = sum(count for count in counts if count is not None)
    left = 60 * policy.max_wait_minutes - max(complete[uri] for uri in batch)
    if None not in counts and images < policy.min_images and left > 0:
        return Wait(why=f"{images} of {policy.min_images} images so far, waiting for more for another {left:.0f} s")
    return Take(deliveries=tuple(batch))
