"""Run the compiled pipeline on this machine: KFP's local runner, a subprocess a step, the store of the configuration.

What runs is the YAML that a cluster would get. Covers checking the input first, progress, and turning what the runner
prints into one report or one error. Not covered: submitting to a cluster.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from components.core.claims import NEW, ClaimLog
from components.core.config import Config, check_strategy, load_config, planned
from components.core.contracts import RunReport
from components.core.errors import ConfigurationError, RunFailed
from components.core.plans import find_plan
from components.core.probe import check_store
from components.core.registry import Registry
from components.core.run_claims import claim_number, claimed
from components.core.runs import Run
from components.core.storage import open_store
from components.core.windows import Window
from components.decide.step import check_plan
from components.ingest.deliveries import Deliveries
from components.ingest.sources import absolute_source, check_source, names_window
from components.promote.provenance import LOCAL_VARIABLE
from pipelines.local_runs import live_run, runs_folder

# What kfp.local says when it skips a branch that it could not decide, and then reports success.
SILENT_FAILURES = ("Could not resolve", "Condition evaluation failed", "Unknown items type", "Failed to ")
EXECUTING = re.compile(r"Executing task .*?'([\w-]+)'")
STEP_LINE = re.compile(r"\[KFP Executor [^\]]*\]: ([\w()-]+(?: [\w()-]+)*: .+)")
RUN_ID = re.compile(r"\(run ([A-Za-z0-9-]+)\)$")
LOG_NAME = "run.log"


def check_inputs(config: Config, source: str, strategy: str) -> None:
    """Find what would stop a run before it begins, so that bad input changes nothing in the store. The store itself is
    tried last.

    Raises:
        ConfigurationError: The strategy or plan is unknown, the store does not answer, or there is no such window.
        SourceError: The source is no folder of labelled images.
        IntegrityError: The ledger or a file of the champion is not what was written.
        UnsoundStore: The store does not keep what it answers.
    """
    check_strategy(strategy, config)
    store = open_store(config.store)
    store.check_reachable(write=True)
    plan = find_plan(store, config.model, digest) if (digest := planned(strategy)) else None
    if names_window(source):
        Window.open(store, config.dataset, source)
    elif (number := claim_number(source)) is not None:
        claimed(ClaimLog(store, config.model), number)  # what it took is looked at by the run, which tells the claim
    elif source == NEW:
        Deliveries(config).check()
    else:
        check_source(source, config)
    registry = Registry(store, config.model)
    champion = registry.champion()
    if plan and names_window(source):
        check_plan(plan, source, champion.version if champion else None, config)
    if champion:
        registry.verify_version(champion.version)
        lineage = registry.lineage(champion.version)
        for window in lineage.windows:
            Window.open(store, config.dataset, window)
    if config.training.architecture != "small-cnn" or config.training.stages:
        from components.core.models import check_architecture

        check_architecture(config.training)
    check_store(store)


def run_pipeline(
    config_path: Path, source: str, strategy: str, say: Callable[[str], None], log_folder: Path | None = None
) -> RunReport:
    """Run the whole pipeline on a source and wait for its end.

    Args:
        config_path: The configuration file.
        source: Folder of class folders, or the id of a window.
        strategy: auto, or one that is forced.
        say: Called with each line that people want to see.
        log_folder: Where the whole output of the runner is kept; by default it is kept only of a run that fails.

    Raises:
        ConfigurationError, SourceError, IntegrityError: See `check_inputs`; the store is as it was.
        UnsoundStore: See `check_inputs`.
        RunFailed: A step crashed; the message has its reason and the place of the log.
    """
    config = load_config(config_path)
    check_inputs(config, source, strategy)
    arguments = {"source": absolute_source(source), "config": str(config_path.absolute()), "strategy": strategy}
    temporary = log_folder is None
    log_folder = log_folder or Path(tempfile.mkdtemp(prefix="retrain-log-"))
    log_folder.mkdir(parents=True, exist_ok=True)
    with (log_folder / LOG_NAME).open("a") as log, live_run(runs_folder(config.store)) as live:
        output = RunnerOutput(log, say, live.begin)
        with SilentFailures() as silent:
            error = _execute(arguments, output)
    if unresolved := [*output.silent_failures, *silent.messages]:
        raise RunFailed(
            f"the local runner skipped a branch: {unresolved[0]}",
            expected="every branch decided",
            next_command=f"read {log_folder / LOG_NAME} and report this as a bug of the pipeline",
        )
    run = Run(open_store(config.store), output.run_id) if output.run_id else None
    report = run.read("report", RunReport) if run else None
    if error is None and report is not None and report.outcome != "failed":
        if temporary:
            shutil.rmtree(log_folder)
        return report
    failures = run.failures() if run else []
    failure = RunFailed(
        failures[0].sentence if failures else f"{error}",
        expected="every step to end",
        next_command=f"mend that and run again; the whole log is {log_folder / LOG_NAME}",
    )
    failure.exit_code = failures[0].exit_code if failures else RunFailed.exit_code
    raise failure from error


class SilentFailures(logging.Handler):
    """Collects what kfp.local logs outside its own output when it skips a branch that it could not decide."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def __enter__(self) -> SilentFailures:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(SILENT_FAILURES):
            self.messages.append(record.getMessage())


class RunnerOutput(io.TextIOBase):
    """What kfp.local prints: kept in a log; its few lines for people are passed on."""

    def __init__(self, log: TextIO, say: Callable[[str], None], begin: Callable[[str], None]) -> None:
        self._log, self._say, self._begin, self._rest = log, say, begin, ""
        self._began = time.monotonic()
        self.run_id: str | None = None
        self.silent_failures: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        plain = re.sub(r"\x1b\[\d+m", "", line)
        if any(f"- WARNING - {failure}" in plain or f"- ERROR - {failure}" in plain for failure in SILENT_FAILURES):
            self.silent_failures.append(plain.strip())
        if match := STEP_LINE.search(plain):
            message = match[1]
            if run := RUN_ID.search(message):
                self.run_id = run[1]
                self._begin(run[1])
            else:
                self._say(f"{time.monotonic() - self._began:6.1f} s  {message}")
        elif match := EXECUTING.search(plain):
            task = re.sub(r"-\d+$", "", match[1])  # kfp numbers the tasks that share a component
            self._say(f"{time.monotonic() - self._began:6.1f} s  {task} ...")


def _execute(arguments: dict[str, str], output: RunnerOutput) -> RuntimeError | None:
    """Compile, load the compiled file, run it. Returns the runner's error, if any."""
    with tempfile.TemporaryDirectory(prefix="retrain-run-") as folder, _quiet_kfp():
        from kfp import components, local

        from pipelines.compiling import compile_pipeline

        for name, value in {**arguments, "temporary folder": folder}.items():
            if "python3" in value or "{{" in value:
                raise ConfigurationError(
                    f"{name} is {value!r}",
                    expected="a path without 'python3' or '{{' in it: KFP's local runner replaces those",
                    next_command="move or rename the folder (or set TMPDIR)",
                )
        compiled = compile_pipeline(Path(folder, "retrain.yaml"))
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(folder, "root")))
        pipeline = components.load_component_from_file(str(compiled))
        try:
            with contextlib.redirect_stdout(output):
                pipeline(**arguments)
        except RuntimeError as error:
            return error
    return None


@contextlib.contextmanager
def _quiet_kfp() -> Iterator[None]:
    """Silence kfp's warnings of what does not apply here, keep the user's working directory off the path, and let the
    steps know that they run in no image.

    The steps are started with `python -m`, which puts the working directory first: a folder there that is called
    `components` would hide ours.
    """
    ours = {"PYTHONSAFEPATH": "1", LOCAL_VARIABLE: "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def say_on_stderr(line: str) -> None:
    """Print a progress line where it does not mix with `--json`."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
