"""Which runs are under way on this machine: a file a run that its process keeps locked for as long as it lives.

The engine of a laptop keeps no record of runs that anybody could ask, and a process that is killed cannot say so: the
lock it held can. Not covered: runs of other machines on the same store.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.core.config import StoreConfig

NAME_VARIABLE = "RETRAIN_RUN_NAME"  # what the run is called by who started it


def runs_folder(config: StoreConfig) -> Path:
    """Where those files are."""
    return config.cache_folder / "runs"


class LiveRun:
    """The run of this process. Does nothing until the run has an id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def begin(self, run_id: str) -> None:
        """Say that this process is the run, and which name it was started under, if any."""
        if self._descriptor is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._folder / f"{run_id}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if name := os.environ.get(NAME_VARIABLE):
            file = self._folder / f"{name}.name"
            file.with_suffix(".part").write_text(run_id)
            file.with_suffix(".part").rename(file)

    def end(self) -> None:
        """Say that it is over."""
        if self._descriptor is not None:
            os.close(self._descriptor)


@contextmanager
def live_run(folder: Path) -> Iterator[LiveRun]:
    """The run of this process, until the block is left."""
    run = LiveRun(folder)
    try:
        yield run
    finally:
        run.end()


def run_named(folder: Path, name: str) -> str | None:
    """The id of the run that was started under a name here; None where there is none, or it has no id yet."""
    with suppress(FileNotFoundError):
        return (folder / f"{name}.name").read_text()
    return None


def is_alive(folder: Path, run_id: str) -> bool | None:
    """Whether the process of a run lives; None where there never was one here."""
    try:
        descriptor = os.open(folder / f"{run_id}.lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
