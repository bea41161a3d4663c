"""Peers of the benchmarks: environments of their own, and processes in them that answer requests.

Covers making an environment from its lock, starting a script there, asking it and ending it. Not covered: what is
asked, and the scripts themselves, `measure.py` and `continual.py` beside this file.

The locks carry no addresses. Lock a peer anew, for example after torch has a new version:

    cd benchmarks/peers; uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \\
        --no-emit-index-url --upgrade NAME.in -o NAME.lock
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
ENVIRONMENTS = REPOSITORY / ".tools" / "peers"
PYTHON = "3.11"  # of the peers: alibi-detect's numba has no wheels for later ones
READY_SECONDS = 300.0  # imports of a peer, several at once on a machine with two cores


class ToolFailed(Exception):
    """The tool cannot be installed, or its process answered with an error, ended or was too slow; the message says
    which."""


def python_of(peer: str) -> Path:
    """Make the environment of a peer where there is none of its lock.

    Args:
        peer: Name of a lock in this folder, without `.lock`.

    Returns:
        The environment's Python.

    Raises:
        ToolFailed: It cannot be installed.
    """
    folder, lock = ENVIRONMENTS / peer, HERE / f"{peer}.lock"
    python, done = folder / "bin" / "python", folder / "installed.lock"
    if done.exists() and done.read_text() == lock.read_text():
        return python
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise ToolFailed("uv is not installed: make install")
    print(f"installing {peer} ...", flush=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", PYTHON, "--no-project", str(folder)],
        [uv, "pip", "sync", "--quiet", "--compile-bytecode", "--python", str(python), str(lock)],
    ):
        done_command = subprocess.run(command, capture_output=True, text=True, check=False)
        if done_command.returncode:
            lines = [line.strip() for line in done_command.stderr.splitlines() if line.strip()]
            raise ToolFailed(f"cannot be installed: {' '.join(lines)[:300]}")
    done.write_text(lock.read_text())
    return python


class ToolProcess:
    """A script of this folder, run by the Python of an environment: a request a line, an answer a line, in JSON.

    Its first answer says that it is ready. An answer with the key `error` is a failure; the process goes on.
    """

    def __init__(self, python: Path, script: str, arguments: tuple[str, ...] = (), *, threads: int) -> None:
        self._command = [str(python), "-W", "ignore", str(HERE / script), *arguments]
        libraries = ("OMP", "MKL", "OPENBLAS", "NUMBA")
        self._environment = {f"{library}_NUM_THREADS": str(threads) for library in libraries} | {
            "LOKY_MAX_CPU_COUNT": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # on a busy machine, spinning threads made peers ten times slower
            "DO_NOT_TRACK": "1",  # evidently
        }

    def start(self) -> None:
        """Start the process without waiting for it: imports take seconds, and all tools import at once."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | self._environment,
            start_new_session=True,  # so that `stop` ends what a tool has started, too
        )

    def wait_until_ready(self) -> None:
        """Wait for the imports.

        Raises:
            ToolFailed: They failed or took too long.
        """
        self._answer(READY_SECONDS)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def ask(self, request: Mapping[str, Any], limit_seconds: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            ToolFailed: It did not end well; the process is ready for other requests all the same.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer(limit_seconds)
        except (ToolFailed, BrokenPipeError) as error:
            if self._process.poll() is not None:
                self.stop()
                self.start()
                self.wait_until_ready()
            raise ToolFailed(str(error)) from error

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, os.killpg, (self._process.pid, signal.SIGKILL))
        timer.start()
        line = self._process.stdout.readline()
        in_time = timer.is_alive()
        timer.cancel()
        if not line:
            self._process.wait()
            raise ToolFailed(
                "ended by itself, probably out of memory" if in_time else f"took more than {seconds:.0f} s"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ToolFailed(answer["error"])
        return answer
