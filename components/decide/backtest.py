"""Replay the plans of the past under another policy: what it would have done, saved and missed. Values in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.core.plans import Decision
from components.decide.policy import decide
from components.decide.turning import outcome_of
from components.decide.utility import Policy


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run that decided: its plan, the seconds it trained in all, and the change of accuracy it promoted (mean of
    both holdouts, in [-1, 1]; None where nothing was promoted)."""

    run_id: str
    source: str
    plan: Decision
    seconds: float
    gained: float | None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a policy makes of a past run.

    Attributes:
        then: What was done: an action, or the first strategy; `now` is what the policy does.
        same: Whether the plan is the same to the bit.
        seconds_now: Training time: what it was where the same is done, else as forecast; None where nothing tells.
        missed: Accuracy that was gained then, in [0, 1], and that the policy would not even have tried to gain.
    """

    run: PastRun
    then: str
    now: str
    same: bool
    seconds_now: float | None
    missed: float

    @property
    def saved_seconds(self) -> float:
        """Training time that the policy saves, negative where it spends more; 0 where nothing tells."""
        return 0.0 if self.seconds_now is None else self.run.seconds - self.seconds_now


def replay(run: PastRun, policy: Policy) -> Replay:
    """Decide on a past run's evidence again; its plan must have evidence."""
    assert run.plan.evidence is not None
    plan = decide(run.plan.evidence, policy)
    then, now = outcome_of(run.plan), outcome_of(plan)
    if now == then:
        seconds: float | None = run.seconds
    else:
        seconds = plan.rungs[0].forecast.seconds if plan.rungs else 0.0
    missed = max(0.0, run.gained or 0.0) if not plan.rungs else 0.0
    return Replay(run=run, then=then, now=now, same=plan.digest == run.plan.digest, seconds_now=seconds, missed=missed)


def summarise(replays: Sequence[Replay]) -> str:
    """The replays in a sentence."""
    same = sum(replay.same for replay in replays)
    hours = sum(replay.saved_seconds for replay in replays) / 3600
    missed = [replay for replay in replays if replay.missed]
    points = 100 * sum(replay.missed for replay in missed)
    unknown = sum(replay.seconds_now is None for replay in replays)
    untold = f" (without {unknown} whose cost nothing tells)" if unknown else ""
    return (
        f"{same} of {len(replays)} plans are the same to the bit. Training hours saved: {hours:.2f}{untold}. "
        f"Regressions missed: {len(missed)}" + (f", {points:.1f} points in all." if missed else ".")
    )
