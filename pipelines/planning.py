"""Plans from the command line: make one, explain a run's, replay those of the past."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.core.config import MAX_RUNGS, load_config
from components.core.contracts import Evaluation, LedgerRecord, Outcome, TrainingSummary
from components.core.errors import ConfigurationError, IntegrityError
from components.core.plans import Decision, find_plan
from components.core.registry import Registry
from components.core.rematches import last_judgement
from components.core.runs import Run
from components.core.storage import open_store
from components.core.succession import Succession, read_succession
from components.decide.backtest import PastRun, replay, summarise
from components.decide.utility import Policy, policy_of
from pipelines.local import check_inputs
from pipelines.status import find_run, model_runs


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A rung as it was planned and as it went: gains of the mean of both holdouts' accuracies, in [-1, 1], seconds of
    the training step, and what the gate said."""

    strategy: str
    gain_expected: float | None
    gain_real: float | None
    seconds_expected: float | None
    seconds_real: float
    verdict: str | None


def make_plan(config_path: Path, source: str, strategy: str) -> Decision:
    """Ingest, validate, detect drift and decide, and stop there: nothing is trained, nothing promoted.

    Raises:
        ConfigurationError, SourceError, IntegrityError: See `check_inputs`; the store is as it was.
    """
    config = load_config(config_path)
    check_inputs(config, source, strategy)
    from components.decide import step as decide
    from components.detect_drift import step as detect_drift
    from components.ingest import step as ingest
    from components.validate import step as validate

    path, run_id = str(config_path), f"plan-{uuid.uuid4()}"
    window = ingest.run(path, run_id, source, strategy, planning=True).id
    validate.run(path, run_id, window)
    detect_drift.run(path, run_id, window)
    return decide.run(path, run_id, window)


def planned_source(config_path: Path, name: str) -> tuple[str, str]:
    """The window of a plan and the strategy parameter that carries it out.

    Raises:
        ConfigurationError: There is not exactly one such plan.
        IntegrityError: The plan is not what was written.
    """
    config = load_config(config_path)
    store = open_store(config.store)
    store.check_reachable(write=False)
    plan = find_plan(store, config.model, name)
    assert plan.evidence is not None, "plans in the store have their evidence"
    return plan.evidence.window, f"plan:{plan.digest}"


def print_plan(plan: Decision, currency: str) -> None:
    """Print a plan as people read it: what, why, what was weighed, what would change it, what is not known."""
    console = Console()
    ladder = " then ".join(rung.strategy for rung in plan.rungs)
    console.print(f"[bold]{plan.action}[/bold]{f': {ladder}' if ladder else ''}  [dim](rule: {plan.rule})[/dim]")
    for reason in plan.reasons:
        console.print(f"  {escape(reason)}", highlight=False, soft_wrap=True)
    if plan.confidence is not None:
        console.print(f"  Confidence that nothing else would have been better: {plan.confidence:.0%}")
    if plan.alternatives:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        table.add_column("weighed")
        for title in ("gain, points (80 %)", "s", "GPU-s", currency):
            table.add_column(title, justify="right")
        for forecast in plan.alternatives:
            table.add_row(forecast.strategy, *forecast.cells)
        console.print()
        console.print(table)
    for title, sentences in (
        ("What would change it", plan.turning_points),
        ("Not known", plan.evidence.missing if plan.evidence else ()),
    ):
        if sentences:
            console.print(f"\n{title}:")
            for sentence in sentences:
                console.print(f"  {escape(sentence)}", highlight=False, soft_wrap=True)
    console.print(f"\nplan {plan.digest}", highlight=False, soft_wrap=True)


def explain_run(config_path: Path, name: str, *, as_json: bool) -> None:
    """Print why a run did what it did: its plan, then each attempt as expected and as it was.

    Raises:
        ConfigurationError: There is not exactly one run that starts like that, or it decided nothing.
    """
    config = load_config(config_path)
    store = open_store(config.store)
    run = find_run(store, config, name)
    plan = run.read("decide", Decision)
    if plan is None:
        raise ConfigurationError(
            f"run {run.run_id} has decided nothing",
            expected="a run that came as far as its decision",
            next_command="retrain status shows the runs",
        )
    attempts, outcome = list(_attempts(run, plan)), run.read("outcome", Outcome)
    rollback = _rollback_of(outcome, read_succession(Registry(store, config.model).ledger()))
    if as_json:
        document = {
            "run_id": run.run_id,
            "digest": plan.digest,
            "plan": plan.model_dump(mode="json"),
            "attempts": [asdict(attempt) for attempt in attempts],
            "outcome": outcome.model_dump(mode="json") if outcome else None,
            "rollback": rollback.model_dump(mode="json") if rollback else None,
        }
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
        return
    print_plan(plan, config.decision.currency)
    console = Console()
    if attempts:
        console.print("\nWhat happened:")
    for attempt in attempts:
        expected = _figures(attempt.gain_expected, attempt.seconds_expected)
        real = _figures(attempt.gain_real, attempt.seconds_real)
        console.print(
            f"  {attempt.strategy}: expected {expected}; it was {real}: {attempt.verdict or 'not judged'}",
            highlight=False,
        )
    console.print(f"\n{escape(outcome.sentence) if outcome else _no_outcome(run)}", highlight=False, soft_wrap=True)
    if rollback:
        told = f"It was rolled back from by {rollback.actor} (ledger record {rollback.number}): {rollback.reason}"
        console.print(escape(told), highlight=False, soft_wrap=True)


def _rollback_of(outcome: Outcome | None, champions: Succession) -> LedgerRecord | None:
    """The rollback that took back what a run promoted, if any did."""
    if outcome is None or outcome.outcome != "promoted":
        return None
    return champions.undone.get(outcome.champion_after or "")


def _no_outcome(run: Run) -> str:
    return "This was a plan only." if run.parameters.planning else "No outcome yet."


def backtest(config_path: Path, policy_path: Path | None, *, as_json: bool) -> None:
    """Replay the plans of all runs, each under its own policy, or all under that of another configuration file."""
    config = load_config(config_path)
    store = open_store(config.store)
    store.check_reachable(write=False)
    policy = policy_of(load_config(policy_path)) if policy_path else None
    champions = read_succession(Registry(store, config.model).ledger())
    past = [(run, found) for run in model_runs(store, config) if (found := _past_run(run, champions))]
    replays = [
        replay(found, chosen) for run, found in past if _can_replay(found, chosen := policy or policy_of(run.config))
    ]
    if as_json:
        for one in replays:
            line = {
                "run_id": one.run.run_id,
                "then": one.then,
                "now": one.now,
                "same": one.same,
                "in_force": one.in_force,
                "seconds_then": sum(one.run.seconds),
                "seconds_now": one.seconds_now,
                "missed": one.missed,
            }
            print(json.dumps(line))  # noqa: T201
        return
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for title in ("window", "then", "now", "same plan"):
        table.add_column(title)
    for title in ("s then", "s now", "points missed"):
        table.add_column(title, justify="right")
    for one in replays:
        seconds = "?" if one.seconds_now is None else f"{one.seconds_now:.0f}"
        missed = f"{100 * one.missed:.1f}" if one.missed else "–"
        same = "yes" if one.same else "no" if one.in_force else "other policy"
        name = escape(one.run.source.rstrip("/").rpartition("/")[2])
        table.add_row(name, one.then, one.now, same, f"{sum(one.run.seconds):.0f}", seconds, missed)
    if replays:
        console.print(table)
    console.print(f"\n{summarise(replays)}" if replays else "no run with a plan yet: retrain run FOLDER makes one")


def _past_run(run: Run, champions: Succession) -> PastRun | None:
    """A run as it is replayed; None where it decided nothing, or in an earlier release that kept no evidence."""
    try:
        plan = run.read("decide", Decision)
    except IntegrityError as error:
        Console(stderr=True).print(f"left out: {escape(error.found)}", highlight=False, soft_wrap=True)
        return None
    if plan is None or plan.evidence is None:
        return None
    outcome = run.read("outcome", Outcome)
    attempts = list(_attempts(run, plan))
    promoted = outcome is not None and outcome.outcome == "promoted" and not _rollback_of(outcome, champions)
    return PastRun(
        run_id=run.run_id,
        source=run.told_source,
        plan=plan,
        seconds=tuple(attempt.seconds_real for attempt in attempts),
        gained=attempts[-1].gain_real if attempts and promoted else None,
    )


def _can_replay(run: PastRun, policy: Policy) -> bool:
    """Whether a policy knows the strategy that a person asked for."""
    forced = run.plan.evidence.forced if run.plan.evidence else None
    if forced is None or forced in policy.training.strategies:
        return True
    Console(stderr=True).print(
        f"left out: run {run.run_id}, in which {forced!r} was asked for; the policy has no such strategy",
        highlight=False,
        soft_wrap=True,
    )
    return False


def _attempts(run: Run, plan: Decision) -> Iterator[Attempt]:
    """The attempts that were made."""
    for number, rung in enumerate(plan.rungs[:MAX_RUNGS], start=1):
        step = run.record(f"train-{number}", TrainingSummary)
        if step is None:
            return
        evaluation = run.read(f"evaluate-{number}", Evaluation)  # the first: the forecast was about the plan's champion
        _, verdict = last_judgement(run, number)
        yield Attempt(
            strategy=rung.strategy,
            gain_expected=rung.forecast.gain,
            gain_real=evaluation.mean_gain if evaluation else None,
            seconds_expected=rung.forecast.seconds,
            seconds_real=max(step.seconds, step.document.seconds),  # the latter where it was cut off and went on
            verdict=verdict.verdict if verdict else None,
        )


def _figures(gain: float | None, seconds: float | None) -> str:
    points = "? points" if gain is None else f"{100 * gain:+.1f} points"
    return f"{points} in {'?' if seconds is None else f'{seconds:.0f}'} s"
