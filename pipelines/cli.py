"""The command line: verbs only; every knob is in the configuration file. Heavy packages are imported by the verb."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from components.core.errors import ConfigurationError, RetrainError

app = typer.Typer(
    name="retrain",
    help="Keeps image classifiers up to date: validate, detect drift, decide, train, gate, promote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
schedule = typer.Typer(help="Recurring runs in the Kubeflow API: those of kubeflow.schedules.", no_args_is_help=True)
app.add_typer(schedule, name="schedule")
ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Source = Annotated[
    str, typer.Argument(help="Folder, s3:// prefix, .csv, .parquet or .tar of labelled images; or the id of a window.")
]
RunSource = Annotated[
    str,
    typer.Argument(
        help="Folder, s3:// prefix, .csv, .parquet or .tar of images; id of a window; new: what was delivered below "
        "trigger.source and no run has taken; or batch:N: what a claim took."
    ),
]
StrategyOption = Annotated[
    str, typer.Option(help="auto, or the name of one: fine-tune, distil, retrain, ... (see `retrain config`).")
]
DEFAULT_CONFIG = Path("retrain.yaml")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where images, store and report go. Made anew.")] = Path("retrain-demo"),
    as_json: AsJson = False,
) -> None:
    """Show the whole product on real scans of handwritten digits: six windows arrive, six different things happen."""
    from pipelines.demo import run_demo

    run_demo(folder, as_json=as_json)


@app.command()
def ingest(source: Source, config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Turn a delivery of labelled images into a window of the store."""
    from components.core import logs
    from components.core.config import load_config
    from components.core.storage import open_store
    from components.ingest.step import ingest as make_window

    logs.configure()
    settings = load_config(config)
    store = open_store(settings.store)
    store.check_reachable(write=True)
    window = make_window(store, settings, source)
    _show(window.model_dump(mode="json"), window.sentence, as_json)


@app.command()
def plan(
    source: RunSource, config: ConfigPath = DEFAULT_CONFIG, strategy: StrategyOption = "auto", as_json: AsJson = False
) -> None:
    """Say what a run would do with a delivery and why, what that brings and costs, and what would change it."""
    from components.core import logs
    from components.core.config import load_config
    from pipelines.planning import make_plan, print_plan

    logs.configure()
    made = make_plan(config, source, strategy)
    if as_json:
        typer.echo(json.dumps({"digest": made.digest, **made.model_dump(mode="json")}, ensure_ascii=False))
    else:
        print_plan(made, load_config(config).decision.currency)
        if made.rungs:
            option = "" if config == DEFAULT_CONFIG else f" --config {config}"
            typer.echo(f"retrain run --plan {made.digest[:12]}{option} carries out exactly this.")


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="As of `retrain plan`; not with --plan.")] = "",
    config: ConfigPath = DEFAULT_CONFIG,
    strategy: StrategyOption = "auto",
    plan: Annotated[str | None, typer.Option(help="Carry out a plan: its digest, or the start of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on this machine: the same compiled YAML that a cluster gets."""
    from pipelines.local import run_pipeline, say_on_stderr

    if bool(source) == bool(plan):
        raise ConfigurationError(
            "a source and a plan" if source else "neither a source nor a plan",
            expected="one of them",
            next_command="retrain run FOLDER, or retrain run --plan DIGEST",
        )
    if plan and strategy != "auto":
        raise ConfigurationError(
            f"a plan and the strategy {strategy}",
            expected="one of them: the plan has its strategies",
            next_command=f"retrain plan FOLDER --strategy {strategy} makes a plan with it",
        )
    if plan:
        from pipelines.planning import planned_source

        source, strategy = planned_source(config, plan)
    report = run_pipeline(config, source, strategy, say_on_stderr)
    _show(report.model_dump(mode="json"), report.sentence, as_json)


@app.command()
def watch(
    config: ConfigPath = DEFAULT_CONFIG,
    once: Annotated[bool, typer.Option("--once", help="Look once, do what can be done now, and end.")] = False,
) -> None:
    """Start a run whenever something was delivered below trigger.source: exactly one for each delivery."""
    from components.core import logs
    from pipelines.trigger.commands import watch_on, watch_once

    logs.configure()
    if once:
        typer.echo(watch_once(config))
    else:
        watch_on(config)


@app.command()
def submit(
    source: Source,
    config: ConfigPath = DEFAULT_CONFIG,
    strategy: StrategyOption = "auto",
    again: Annotated[bool, typer.Option("--again", help="Also where a run has taken it before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have one run on a delivery, however many ask for it; where another run is under way, it is queued behind that."""
    from components.core import logs
    from pipelines.trigger.commands import submit as submit_source

    logs.configure()
    submission = submit_source(config, source, strategy, again=again)
    _show(asdict(submission), submission.sentence, as_json)


@app.command()
def abandon(
    claim: Annotated[int, typer.Argument(help="Number of the claim under way, as of `retrain status`.")],
    reason: Annotated[str, typer.Option(help="Why; goes into the log of claims with your name.")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Have no more runs on what a claim took, so that the next deliveries get theirs."""
    from pipelines.status import abandon as abandon_claim

    typer.echo(abandon_claim(config, claim, reason))


@app.command()
def status(config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Show the champion, the ledger, the runs, what claims took, what waits for approval, and what is in quarantine."""
    from pipelines.status import print_status

    print_status(config, as_json=as_json)


@app.command()
def history(config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Show the ledger: promotions, rejections, holds, approvals, rollbacks, releases and removals; who and why."""
    from pipelines.history import print_history, read_history

    records = read_history(config)
    if as_json:
        for record in records:
            typer.echo(record.model_dump_json())
    else:
        print_history(records)


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="A run of `retrain status`; the start of its id is enough.")],
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Say why a run did what it did, what was expected and what came of it, and what would have changed it."""
    from pipelines.planning import explain_run

    explain_run(config, run, as_json=as_json)


@app.command()
def backtest(
    config: ConfigPath = DEFAULT_CONFIG,
    policy: Annotated[
        Path | None, typer.Option(help="A configuration file whose decision and strategies are tried; else each run's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay the plans of all runs under another policy: hours saved, regressions missed."""
    from pipelines.planning import backtest as replay_runs

    replay_runs(config, policy, as_json=as_json)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(help="A run that waits; the start of its id is enough.")],
    reason: Annotated[str, typer.Option(help="Why it may be promoted; goes into the ledger with your name.")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Promote the challenger of a run that waits (decision.mode: manual)."""
    from pipelines.status import approve as approve_waiting

    typer.echo(approve_waiting(config, run, reason))


@app.command()
def release(
    window: Annotated[str, typer.Argument(help="A window in quarantine; the start of its id is enough.")],
    reason: Annotated[str, typer.Option(help="Why it may pass; goes into the ledger with your name.")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Let a quarantined window pass, against validation and triage."""
    from pipelines.status import release as release_quarantined

    typer.echo(release_quarantined(config, window, reason))


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; goes into the ledger with your name.")],
    to: Annotated[
        str | None,
        typer.Option(help="A version that was champion before; the start of its id. Default: the one before this one."),
    ] = None,
    unscored: Annotated[
        bool, typer.Option("--unscored", help="Do not score it first; goes into the ledger too.")
    ] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make a former champion the champion again: verified, loaded and scored before; one record in the ledger."""
    from pipelines.rollback import print_rollback

    print_rollback(config, to, reason, unscored=unscored, as_json=as_json)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Delete versions, evidence, checkpoints and what was cut off that nobody needs any more (section retention)."""
    from pipelines.garbage import print_garbage

    print_garbage(config, dry_run=dry_run, as_json=as_json)


@app.command()
def report(
    config: ConfigPath = DEFAULT_CONFIG,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page over all runs of the model, with pictures of what changed."""
    from pipelines.status import write_report

    typer.echo(f"{write_report(config, output)} runs: {output}")


@app.command()
def verify(
    version: Annotated[
        str | None, typer.Argument(help="A version, the champion by default; or a folder of `export --bundle`.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Public key (PEM) that the evidence must be signed with.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Check every file of a version and its evidence, the windows and the ledger; of a folder, with nothing else."""
    from pipelines.audit import verify_folder, verify_version

    if version and Path(version).is_dir():
        typer.echo(verify_folder(Path(version), key))
    else:
        typer.echo(verify_version(config, version, key))


@app.command()
def export(
    version: Annotated[str | None, typer.Argument(help="A version; the champion by default.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Write version and evidence into this new folder.")] = None,
    kserve: Annotated[bool, typer.Option("--kserve", help="Write an InferenceService that serves its ONNX.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the InferenceService; else standard output.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Hand a version on: as a folder that anyone can verify offline, or to KServe."""
    if (bundle is None) != kserve:
        raise ConfigurationError(
            "--bundle and --kserve" if bundle else "neither --bundle nor --kserve",
            expected="one of them",
            next_command="retrain export --bundle FOLDER, or retrain export --kserve",
        )
    if bundle:
        from pipelines.audit import export_bundle

        typer.echo(export_bundle(config, version, bundle))
        return
    from pipelines.kserve import export_service

    service = export_service(config, version)
    if output:
        output.write_text(service)
    else:
        typer.echo(service, nl=False)


@app.command()
def doctor(
    config: ConfigPath = DEFAULT_CONFIG,
    race: Annotated[
        bool, typer.Option("--race", help="Also let 50 writers create one object at once, ten times.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that the store keeps what it answers. Exit code 1: nothing can be promoted on it."""
    from pipelines.doctor import examine, print_findings

    findings = examine(config, race=race)
    if as_json:
        for finding in findings:
            typer.echo(finding.model_dump_json())
    else:
        print_findings(findings)
    if any(finding.required and not finding.passed for finding in findings):
        raise typer.Exit(1)


@app.command(name="compile")
def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")] = Path(
        "retrain-pipeline.yaml"
    ),
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="As Pipeline and PipelineVersion objects, for kubectl apply.")
    ] = False,
    name: Annotated[str, typer.Option(help="With --kubernetes: name of the Pipeline (kubeflow.pipeline).")] = "retrain",
    namespace: Annotated[
        str | None, typer.Option(help="With --kubernetes: namespace of the objects; else kubectl's.")
    ] = None,
) -> None:
    """Compile the pipeline to the YAML that Kubeflow Pipelines takes; the pods' image comes from RETRAIN_IMAGE."""
    from pipelines.compiling import compile_for_cluster, compile_for_kubernetes

    compiled = compile_for_kubernetes(output, name, namespace) if kubernetes else compile_for_cluster(output)
    typer.echo(f"compiled: {compiled}")


@schedule.command(name="apply")
def schedule_apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make the recurring runs of the Kubeflow API those of kubeflow.schedules; the image comes from RETRAIN_IMAGE."""
    from components.core import logs
    from components.core.config import load_config
    from pipelines.client import KubeflowClient
    from pipelines.schedules import apply_schedules

    logs.configure()
    settings = load_config(config)
    for change in apply_schedules(KubeflowClient(settings), settings, dry_run=dry_run):
        would = "would be " if dry_run and change.action != "kept" else ""
        _show(asdict(change), f"{change.name}: {would}{change.action}", as_json)


@schedule.command(name="list")
def schedule_list(config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Show the recurring runs of the model: configured, in the API, or both."""
    from components.core.config import load_config
    from pipelines.client import KubeflowClient
    from pipelines.schedules import list_schedules

    settings = load_config(config)
    for row in list_schedules(KubeflowClient(settings), settings):
        _show(asdict(row), f"{row.name}: {row.rhythm}, {row.state}", as_json)


@app.command()
def wait(
    run: Annotated[str, typer.Argument(help="A run of the Kubeflow API: its id, or its name.")],
    timeout: Annotated[float | None, typer.Option(min=0, help="Longest wait, in minutes; else to the end.")] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 10.0,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Wait until a run in the cluster has ended. Exit code 1: it failed, was cancelled, or did not end in time."""
    from components.core import logs
    from components.core.config import load_config
    from pipelines.client import KubeflowClient, find_run_id, wait_for_success

    logs.configure()
    client = KubeflowClient(load_config(config))
    run_id = find_run_id(client, run)
    status = wait_for_success(client, run_id, poll, None if timeout is None else timeout * 60)
    _show({"run_id": run_id, **asdict(status)}, f"run {run_id}: {status.word}; next: retrain explain {run_id}", as_json)


@app.command(name="logs")
def logs_(
    run: Annotated[str, typer.Argument(help="A run of the Kubeflow API: its id, or its name.")],
    step: Annotated[
        str | None, typer.Option(help="Only of this step: train, or train-2 for its second attempt.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Print what the pods of a run in the cluster print, each line with its task; needs a kubeconfig."""
    from components.core import logs
    from components.core.config import load_config
    from pipelines.client import KubeflowClient, find_run_id
    from pipelines.pods import connect, print_logs

    logs.configure()
    settings = load_config(config)
    client = KubeflowClient(settings)
    pods = connect(settings.kubeflow, find_run_id(client, run))
    print_logs(client, pods, step, typer.echo, follow=follow)


@app.command(name="config")
def config_(
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema instead, for editors.")] = False,
) -> None:
    """Print a documented configuration file with every default."""
    from components.core.config import Config, describe_config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2) if schema else describe_config())


def main() -> None:
    """Entry point. Exit codes: 0 done (a rejected challenger too), 1 a run failed, 2 a usage or configuration error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    try:
        app()
    except OSError as error:
        typer.echo(f"error\n  found:    {error}", err=True)
        typer.echo("  expected: files and folders that exist and that you may read and write", err=True)
        typer.echo("  next:     check the path and its rights, then run again", err=True)
        sys.exit(2)
    except RetrainError as error:
        typer.secho("error", fg="red", bold=True, err=True)
        typer.echo(
            f"  found:    {error.found}\n  expected: {error.expected}\n  next:     {error.next_command}", err=True
        )
        sys.exit(error.exit_code)


def _show(document: dict[str, object], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False) if as_json else sentence)
