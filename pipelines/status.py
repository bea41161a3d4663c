"""What the store says: champion, ledger, runs, what waits, quarantine; the page over all runs."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.core.claims import BATCH, ClaimLog, ClaimState, ClosedClaim
from components.core.config import Config, load_config
from components.core.contracts import LedgerRecord, RunReport, describe_deliveries
from components.core.errors import ConfigurationError, IntegrityError
from components.core.registry import Registry
from components.core.run_claims import abandon_claim
from components.core.runs import Run, list_runs
from components.core.storage import ObjectStore, open_store
from components.promote.approval import approve_run, passed_verdict
from components.promote.release import quarantined, release_window
from components.report.step import tell

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WaitingRun:
    """A challenger that the gate passed against `champion` and nobody has approved. `overtaken`: another version has
    become champion since. `command` is what to do: approve it, or run its window again."""

    run_id: str
    source: str
    window: str | None
    challenger: str
    champion: str | None
    overtaken: bool
    command: str


def print_status(config_path: Path, *, as_json: bool) -> None:
    """Print the state of a model: JSON with one object, or tables."""
    config, store = open_configured(config_path)
    records = Registry(store, config.model).ledger()
    champion = Registry(store, config.model).champion()
    told = [(run, read_report(run)) for run in model_runs(store, config)]
    reports = [report for _, report in told if report]
    ended = {report.source for report in reports}
    unfinished = [run.run_id for run, report in told if report is None and run.told_source not in ended]
    regression = find_regression(reports, champion.version if champion else None)
    waiting, locked_up = waiting_runs(told, records), quarantined(store, config.dataset)
    claims = ClaimLog(store, config.model).read()
    if as_json:
        state = {
            "model": config.model,
            "champion": champion.version if champion else None,
            "regression": regression,
            "ledger": [record.model_dump(mode="json") for record in records],
            "runs": [report.model_dump(mode="json") for report in reports],
            "unfinished": unfinished,
            "waiting": [asdict(run) for run in waiting],
            "claims": describe_claims(claims),
            "quarantine": [
                {"window": window, "rule": decision.rule, "reasons": decision.reasons}
                for window, decision in locked_up.items()
            ],
        }
        print(json.dumps(state, ensure_ascii=False))  # noqa: T201
        return
    console = Console()
    since = f" since {champion.created:%Y-%m-%d %H:%M} UTC" if champion else ""
    console.print(f"{config.model}: champion [bold]{champion.version if champion else 'none yet'}[/bold]{since}")
    if regression:
        console.print(f"[bold red]{escape(regression)}[/bold red]", highlight=False, soft_wrap=True)
    print_runs(console, reports)
    kinds = Counter(record.kind for record in records)
    console.print(f"\nledger: {', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'empty'}")
    console.print(f"unfinished: {', '.join(unfinished) or 'none'} (running, or cut off: running again is safe)")
    for line in tell_claims(claims):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"waiting for approval: {len(waiting) or 'none'}")
    for one in waiting:
        but = " (overtaken by another champion)" if one.overtaken else ""
        console.print(f"\n  [bold]{escape(one.source)}[/bold]: challenger {one.challenger[:12]}{but}", highlight=False)
        console.print(f"    {one.command}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"quarantine: {len(locked_up) or 'empty'}")
    for window, decision in locked_up.items():
        console.print(
            f"\n  [bold]{window}[/bold] ({decision.rule})\n    {escape(decision.reasons[0])}", highlight=False
        )
    if locked_up:
        console.print("\n[dim]retrain release WINDOW --reason TEXT lets one pass, on record.[/dim]")


def describe_claims(state: ClaimState) -> dict[str, object]:
    """What the log of claims says, for programs: the claim under way, what is queued, what was refused, counts."""
    claim = state.open
    return {
        "open": asdict(claim) | {"since": claim.since.isoformat(), "arguments": claim.arguments.model_dump()}
        if claim
        else None,
        "queued": [request.arguments.source for request in state.requests],
        "refused": [asdict(closed) for closed in refused_claims(state)],
        "consecutive_failures": state.failures,
        "runs": dict(state.counts),
        "deliveries_taken": len(state.taken),
    }


def tell_claims(state: ClaimState) -> Iterator[str]:
    """The same for people, a line each; nothing where nothing was ever claimed."""
    if not state.entries:
        return
    counts = ", ".join(f"{n} {result}" for result, n in state.counts.items()) or "none ended"
    yield f"deliveries: {len(state.taken)} taken; runs of claims: {counts}"
    if claim := state.open:
        doing = f"run {claim.run_id}" if claim.run_id else "failed, is tried again" if claim.failed else "being started"
        yield f"  {BATCH}{claim.number} ({describe_deliveries(claim.deliveries)}): attempt {claim.attempt}, {doing}"
        if claim.reason:
            yield f"    {claim.reason}"
        if claim.failed:
            yield f"    to have no more runs on it: retrain abandon {claim.number} --reason TEXT"
    for request in state.requests:
        yield f"  queued: {request.arguments.source}"
    for closed in refused_claims(state):
        yield f"  refused: {closed.deliveries[0]}: {closed.reason}"
        yield f"    mend it, then retrain submit {closed.deliveries[0]} --again"


def refused_claims(state: ClaimState) -> list[ClosedClaim]:
    """Claims whose delivery could not be read and that nobody has asked for again."""
    return [
        closed
        for closed in state.closed.values()
        if closed.result == "refused" and state.taken.get(closed.deliveries[0]) == closed.number
    ]


def find_regression(reports: Sequence[RunReport], champion: str | None) -> str | None:
    """What the last run says of a champion that is worse than the one before it, as long as it is the champion."""
    last = reports[-1] if reports else None
    return last.regression if last and last.champion_after == champion else None


def waiting_runs(told: Sequence[tuple[Run, RunReport | None]], ledger: Sequence[LedgerRecord]) -> list[WaitingRun]:
    """The runs that wait for approval, oldest first.

    One that was overtaken by another champion is told as long as no later run of its window has ended.

    Args:
        told: Runs with their reports, oldest first.
        ledger: The model's, oldest first.
    """
    promotions = [record for record in ledger if record.makes_champion]
    champion = promotions[-1].version if promotions else None
    begun = {record.run_id for record in promotions}  # an approval that was cut off: approving again finishes it
    ended = [(run, report) for run, report in told if report and report.outcome != "failed"]
    newest = {report.window: run.run_id for run, report in ended}
    found: list[WaitingRun] = []
    for run, report in ended:
        overtaken = report.champion_before != champion and run.run_id not in begun
        if report.outcome == "waiting" and passed_verdict(run).challenger == champion and run.run_id not in begun:
            continue  # another run came to the same challenger, which was promoted
        if report.outcome == "waiting" and (not overtaken or newest[report.window] == run.run_id):
            found.append(_waiting_run(run, report, overtaken))
    return found


def _waiting_run(run: Run, report: RunReport, overtaken: bool) -> WaitingRun:
    return WaitingRun(
        run_id=run.run_id,
        source=report.source_name,
        window=report.window,
        challenger=passed_verdict(run).challenger,
        champion=report.champion_before,
        overtaken=overtaken,
        command=f"retrain run {report.window}" if overtaken else f"retrain approve {run.run_id} --reason TEXT",
    )


def print_runs(console: Console, reports: list[RunReport]) -> None:
    """Print runs as a table that fits 80 columns, then the reason of each decision.

    Columns: window, drift, decision, training attempts (#), verdict, accuracy in % of champion and challenger on old
    and new holdout, seconds.
    """
    if not reports:
        console.print("no runs yet: retrain run FOLDER makes the first champion")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("window", overflow="fold")
    for title in ("drift", "decision", "#", "verdict"):
        table.add_column(title, no_wrap=True)
    for title in ("old %", "new %", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    for r in reports:
        table.add_row(
            escape(r.source_name),
            r.drift or "–",
            r.strategy or r.action or "–",
            str(r.attempts or "–"),
            r.outcome if r.outcome in ("failed", "held", "waiting") else r.verdict or "–",
            _accuracies(r.accuracy.champion_old, r.accuracy.challenger_old, r.reference_accuracy),
            _accuracies(r.accuracy.champion_new, r.accuracy.challenger_new, r.window_accuracy),
            f"{r.seconds:.0f}",
        )
    console.print(table)
    console.print(
        "[dim]#: training attempts. old %, new %: accuracy of champion→challenger on each holdout, on rows of classes "
        "that the champion knows; in brackets the champion's on its reference and on the whole window.[/dim]"
    )
    for r in reports:
        rule = f" ({r.rule})" if r.rule else ""
        console.print(
            f"\n[bold]{escape(r.source_name)}[/bold]: {r.outcome}{rule}\n  {escape(r.reason)}", highlight=False
        )


def read_report(run: Run) -> RunReport | None:
    """A run's report, or None where there is none, or none that this release can read."""
    try:
        return run.read("report", RunReport)
    except IntegrityError as error:
        logger.warning("run %s is passed over: %s", run.run_id, error)
        return None


def model_runs(store: ObjectStore, config: Config) -> list[Run]:
    """Runs of the configured model, oldest first; not those that only made a plan."""
    runs = [(run, run.parameters) for run in list_runs(store)]
    return [run for run, asked in runs if asked.model == config.model and not asked.planning]


def find_run(store: ObjectStore, config: Config, name: str) -> Run:
    """The run of the configured model whose id starts like that; a run that only made a plan too.

    Raises:
        ConfigurationError: There is not exactly one.
    """
    matches = [run for run in list_runs(store) if name and run.run_id.startswith(name)]
    matches = [run for run in matches if run.parameters.model == config.model]
    if len(matches) != 1:
        raise ConfigurationError(
            f"{len(matches)} runs that start with {name!r}",
            expected="the id of one run",
            next_command="retrain status --json lists them",
        )
    return matches[0]


def release(config_path: Path, window: str, reason: str) -> str:
    """Release a quarantined window in the name of the user of this machine; says what to do next.

    Raises:
        ConfigurationError: There is not exactly one such window in quarantine, or the reason is empty.
    """
    reason = need_reason(reason, example="new camera")
    config, store = open_configured(config_path, write=True)
    actor = user()
    record = release_window(store, config.model, config.dataset, window, actor=actor, reason=reason)
    return (
        f"window {record.window} released by {actor} (ledger record {record.number}); next: retrain run {record.window}"
    )


def abandon(config_path: Path, number: int, reason: str) -> str:
    """Give up a claim in the name of the user of this machine; says what to do next.

    Raises:
        ConfigurationError: It is not the claim under way, or the reason is empty.
    """
    reason = need_reason(reason, example="its images are gone")
    config, store = open_configured(config_path, write=True)
    actor = user()
    closed = abandon_claim(ClaimLog(store, config.model), number, actor, reason)
    what = f"{BATCH}{number} ({describe_deliveries(closed.deliveries)})"
    return f"{what} abandoned by {actor}; next: retrain submit {closed.deliveries[0]} --again takes it up"


def approve(config_path: Path, run_name: str, reason: str) -> str:
    """Promote what a run left waiting, in the name of the user of this machine, and tell the run anew.

    Its row and its metrics say `promoted` from then on; its own page stays as the run left it.

    Raises:
        ConfigurationError: There is not exactly one such run, the reason is empty; see `approve_run` for the others.
        IntegrityError: The challenger's files are not what was written.
    """
    reason = need_reason(reason, example="looked at its mistakes")
    config, store = open_configured(config_path, write=True)
    run = find_run(store, config, run_name)
    record = approve_run(store, config.model, run.run_id, actor=user(), reason=reason)
    tell(run)
    return f"version {record.version} promoted by {record.actor} (ledger record {record.number})"


def write_report(config_path: Path, output: Path) -> int:
    """Write the page over all runs of the model. Returns how many there are."""
    from components.report.page import render_page

    config, store = open_configured(config_path)
    runs = model_runs(store, config)
    output.write_text(render_page(runs))
    return len(runs)


def open_configured(config_path: Path, *, write: bool = False) -> tuple[Config, ObjectStore]:
    """A configuration and its store, which answers.

    Raises:
        ConfigurationError: See `load_config`; the store does not answer, or cannot be written to where it must.
    """
    config = load_config(config_path)
    store = open_store(config.store)
    store.check_reachable(write=write)
    return config, store


def need_reason(reason: str, *, example: str) -> str:
    """A person's reason, as it goes into the ledger.

    Raises:
        ConfigurationError: It is empty.
    """
    if not reason.strip():
        raise ConfigurationError("an empty reason", expected="why", next_command=f"--reason '{example}'")
    return reason.strip()


def user() -> str:
    """Who gives the command, for the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a pod's user id has no name
        return f"user {os.getuid()}"


def _accuracies(champion: float | None, challenger: float | None, drift: float | None) -> str:
    values = [f"{100 * value:.1f}" for value in (champion, challenger) if value is not None]
    return "→".join(values) or (f"({100 * drift:.1f})" if drift is not None else "–")
