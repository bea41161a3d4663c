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
    """A run that decided: its plan, the seconds of each attempt, and the change of accuracy it promoted (mean of both
    holdouts, in [-1, 1]; None where nothing was promoted, or it was rolled back from)."""

    run_id: str
    source: str
    plan: Decision
    seconds: tuple[float, ...]
    gained: float | None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a policy makes of a past run.

    Attributes:
        then: What was done: an action, or the first strategy; `now` is what the policy does.
        same: Whether the plan is the same to the bit.
        in_force: Whether the policy is the one that the plan was made under.
        seconds_now: Training time: what it was where the same is done; else as forecast, for as many rungs as were
            tried then; None where nothing tells.
        missed: Accuracy that was gained then, in [0, 1], and that the policy would not even have tried to gain.
    """

    run: PastRun
    then: str
    now: str
    same: bool
    in_force: bool
    seconds_now: float | None
    missed: float

    @property
    def saved_seconds(self) -> float:
        """Training time that the policy saves, negative where it spends more; 0 where nothing tells."""
        return 0.0 if self.seconds_now is None else sum(self.run.seconds) - self.seconds_now

    @property
    def saved_gpu_seconds(self) -> float:
        """The same, for each of the GPUs that the model trains on; 0 on a CPU."""
        evidence = self.run.plan.evidence
        return self.saved_seconds * (evidence.gpus if evidence else 0)


def replay(run: PastRun, policy: Policy) -> Replay:
    """Decide on a past run's evidence again; its plan must have evidence."""
    assert run.plan.evidence is not None
    plan = decide(run.plan.evidence, policy)
    return Replay(
        run=run,
        then=outcome_of(run.plan),
        now=outcome_of(plan),
        same=plan.digest == run.plan.digest,
        in_force=plan.policy == run.plan.policy,
        seconds_now=_seconds(run, plan),
        missed=0.0 if plan.rungs else max(0.0, run.gained or 0.0),
    )


def _seconds(run: PastRun, plan: Decision) -> float | None:
    if _trains(plan) == _trains(run.plan):
        return sum(run.seconds)
    told = [rung.forecast.seconds for rung in plan.rungs[: max(1, len(run.seconds))]]
    return None if None in told else sum(seconds for seconds in told if seconds is not None)


def _trains(plan: Decision) -> list[object]:
    return [(rung.strategy, rung.hyperparameters) for rung in plan.rungs]


def summarise(replays: Sequence[Replay]) -> str:
    """The replays in a sentence."""
    in_force = [replay for replay in replays if replay.in_force]
    same = sum(replay.same for replay in in_force)
    hours = round(sum(replay.saved_seconds for replay in replays) / 3600, 2) + 0.0  # no -0.00
    gpu_hours = round(sum(replay.saved_gpu_seconds for replay in replays) / 3600, 2) + 0.0
    missed = [replay.missed for replay in replays if replay.missed]
    unknown = sum(replay.seconds_now is None for replay in replays)
    sentences = [
        f"{same} of {len(in_force)} plans under the policy they were made under are the same to the bit."
        if in_force
        else "No plan was made under this policy.",
        f"Training hours saved: {hours:.2f}, GPU-hours: {gpu_hours:.2f}"
        + (f" (without {unknown} runs whose cost nothing tells)." if unknown else "."),
        f"Regressions missed: {len(missed)}" + (f", {100 * sum(missed):.1f} points in all." if missed else "."),
    ]
    return " ".join(sentences)
