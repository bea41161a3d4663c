"""What a run does about the log of claims: finds what it is to read, enters itself, and says how it ended.

Not covered: starting runs, and runs that can say nothing any more because they were terminated or lost
(`pipelines.trigger`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from components.core.claims import (
    BATCH,
    Claim,
    ClaimLog,
    ClaimState,
    ClosedClaim,
    Ended,
    Entry,
    OpenClaim,
    Result,
    Started,
)
from components.core.config import Config
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError
from components.core.runs import Run


def claim_number(source: str) -> int | None:
    """The claim that a source names, `batch:12`; None for any other source."""
    number = source.removeprefix(BATCH)
    return int(number) if source.startswith(BATCH) and number.isdecimal() else None


def join_claim(log: ClaimLog, number: int, run_id: str) -> tuple[str, ...]:
    """Enter a run as the one of a claim, unless it is done with: anybody may look at that again.

    Returns:
        What the claim took.

    Raises:
        ConfigurationError: There is no such claim, or another run is at it.
    """

    def start(state: ClaimState) -> Entry | None:
        claim, closed = state.open, state.closed.get(number)
        if closed is not None and closed.result == "abandoned":
            raise ConfigurationError(
                f"{BATCH}{number} was given up: {closed.reason}",
                expected="a claim that somebody wants a run on",
                next_command=f"retrain submit {closed.deliveries[0]} --again",
            )
        if claim is None or claim.number != number or claim.run_id == run_id:
            return None
        if claim.run_id is not None:
            raise _under_way(claim)
        return Started(actor=run_id, claim=number, run_id=run_id)

    log.enter(start)
    return claimed(log, number)


def claimed(log: ClaimLog, number: int) -> tuple[str, ...]:
    """What a claim took.

    Raises:
        ConfigurationError: There is no such claim.
    """
    deliveries = log.read().deliveries_of(number)
    if deliveries is None:
        raise ConfigurationError(
            f"no claim {BATCH}{number} of {log.model} in {log.store.uri}",
            expected="the number of a claim",
            next_command="retrain status shows them",
        )
    return deliveries


def run_arguments(config: Config, source: str, strategy: str = "auto") -> RunArguments:
    """What a run is started with, as the configuration has it."""
    gpus = config.kubeflow
    return RunArguments(source=source, strategy=strategy, gpu_type=gpus.gpu_type, gpu_count=str(gpus.gpu_count))


def take_new(
    log: ClaimLog, list_complete: Callable[[Container[str]], Iterable[str]], run_id: str, arguments: RunArguments
) -> tuple[str, ...]:
    """Claim all that was delivered and that no run has taken, or what a run that failed has left.

    A run that asks again gets the same.

    Args:
        log: The model's.
        list_complete: Lists the complete deliveries among those that are not taken.
        run_id: The run.
        arguments: What it was started with: so it is started again, should it fail.

    Returns:
        The deliveries; none where nothing is new.

    Raises:
        ConfigurationError: Another run is under way, or being started.
    """

    def claim(state: ClaimState) -> Entry | None:
        if run_id in state.run_claims:
            return None
        if state.open is not None and state.open.failed:
            return Started(actor=run_id, claim=state.open.number, run_id=run_id)
        if state.open is not None:
            raise _under_way(state.open)
        asked = {request.arguments.source for request in state.requests}  # those get their own runs
        deliveries = state.next_batch(uri for uri in list_complete(state.taken) if uri not in asked)
        if not deliveries:
            return None
        return Claim(actor=run_id, deliveries=deliveries, arguments=arguments, run_id=run_id)

    log.enter(claim)
    state = log.read()
    number = state.run_claims.get(run_id)
    return () if number is None else state.deliveries_of(number) or ()


def _under_way(claim: OpenClaim) -> ConfigurationError:
    who = f"run {claim.run_id}" if claim.run_id else f"a run that {claim.holder} is starting"
    return ConfigurationError(
        f"{who} is at {BATCH}{claim.number} since {claim.since:%Y-%m-%d %H:%M} UTC",
        expected="one run of a model at a time",
        next_command=f"wait; if it is dead: retrain watch --once, or retrain abandon {claim.number} --reason TEXT",
    )


def end_claim(log: ClaimLog, run: Run, *, succeeded: bool) -> None:
    """Say how the run of a claim ended. Of a run that has none, or has said so before, nothing is said."""
    result, reason = judge_run(run, succeeded=succeeded)

    def end(state: ClaimState) -> Entry | None:
        claim = state.open
        if claim is None or claim.run_id != run.run_id:
            return None
        return Ended(actor=run.run_id, claim=claim.number, run_id=run.run_id, result=result, reason=reason)

    log.enter(end)


def abandon_claim(log: ClaimLog, number: int, actor: str, reason: str) -> ClosedClaim:
    """Have no more runs on what a claim took. One that is under way goes on; its end changes nothing any more.

    Raises:
        ConfigurationError: It is not the claim under way.
    """

    def abandon(state: ClaimState) -> Entry | None:
        claim = state.open
        if claim is None or claim.number != number:
            raise ConfigurationError(
                f"{BATCH}{number} is not under way",
                expected=f"the number of the open claim: {claim.number if claim else 'there is none'}",
                next_command="retrain status",
            )
        return Ended(actor=actor, claim=number, run_id=claim.run_id, result="abandoned", reason=reason)

    log.enter(abandon)
    return log.read().closed[number]


def judge_run(run: Run, *, succeeded: bool) -> tuple[Result, str]:
    """How a run ended as far as its claim goes, and why if not well."""
    if succeeded:
        return "succeeded", ""
    failures = run.failures()
    if not failures:
        return "failed", "No step filed a failure: its pod was lost, or it was terminated or ran out of time."
    first = failures[0]
    refused = (first.step, first.error) == ("ingest", "SourceError")
    return "refused" if refused else "failed", first.sentence
