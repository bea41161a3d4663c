"""Starts runs on this machine: `retrain run`, in a process of its own that outlives the trigger."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from components.core.config import Config
from components.core.contracts import RunArguments, RunReport
from components.core.errors import ConfigurationError
from components.core.runs import Run
from components.core.storage import ObjectStore
from pipelines.local_runs import NAME_VARIABLE, is_alive, run_named, runs_folder
from pipelines.trigger.launcher import LauncherUnavailable, RunState

COMMAND = (sys.executable, "-c", "from pipelines.cli import main; main()", "run")
CHECK_SECONDS = 0.1


class LocalLauncher:
    """Runs of this machine. See `Launcher` for what its methods promise."""

    def __init__(self, config_path: Path, config: Config, store: ObjectStore, command: Sequence[str] = COMMAND) -> None:
        self._config_path, self._config, self._store = config_path.absolute(), config, store
        self._folder, self._command = runs_folder(config.store), command
        self._children: list[subprocess.Popen[bytes]] = []

    def find(self, name: str) -> str | None:
        return run_named(self._folder, name)

    def start(self, name: str, arguments: RunArguments) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        output = self._folder / f"{name}.log"
        call = [*self._command, arguments.source, "--config", str(self._config_path), "--strategy", arguments.strategy]
        ours = {NAME_VARIABLE: name, "PYTHONSAFEPATH": "1"}
        with output.open("ab") as file:
            child = subprocess.Popen(
                call,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ours},
                start_new_session=True,  # what stops the trigger does not stop the run
            )
        self._children = [c for c in self._children if c.poll() is None] + [child]  # those that ended are reaped
        return self._wait_for_id(child, name, output)

    def state(self, run_id: str) -> RunState:
        alive = is_alive(self._folder, run_id)
        if alive:
            return "running"
        report = Run(self._store, run_id).read("report", RunReport)
        if report is not None:
            return "failed" if report.outcome == "failed" else "succeeded"
        if alive is False:
            return "failed"
        return "running"  # of another machine, or Kubeflow's: its own end will be in the log of claims

    def _wait_for_id(self, child: subprocess.Popen[bytes], name: str, output: Path) -> str:
        began = time.monotonic()
        while time.monotonic() - began < self._config.trigger.lease_seconds:
            ended = child.poll() is not None  # before looking: what ends has said its id before
            if run_id := run_named(self._folder, name):
                return run_id
            if ended:
                tail = output.read_text(errors="replace").strip()[-1000:]
                raise ConfigurationError(
                    f"{name} ended with exit code {child.returncode} before it began: {tail}",
                    expected="a run that begins",
                    next_command=f"mend that; the whole output is {output}",
                )
            time.sleep(CHECK_SECONDS)
        child.kill()  # or the next try would start a second one beside it
        child.wait()
        raise LauncherUnavailable(f"{name} has not begun within {self._config.trigger.lease_seconds:g} s; see {output}")
