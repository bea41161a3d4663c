"""The run record: what each step of a run concluded, written once, read by later steps, the report and the CLI.

A step that finds its own record has run before (its pod was lost after the work was done): it hands out what is
recorded. Not covered: who starts runs (`pipelines`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from components.core.config import Config, load_config
from components.core.contracts import Failure, RunParameters, StepDocument, WindowDocument
from components.core.errors import ConfigurationError, RetrainError, StoreUnreachable
from components.core.storage import ObjectStore, get_json, open_store, to_json

logger = logging.getLogger(__name__)
D = TypeVar("D", bound=StepDocument)
M = TypeVar("M", bound=BaseModel)


class StepRecord(BaseModel, Generic[D]):
    """The envelope around a step's document: when it ran, how long (seconds), and what it said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    started: datetime
    seconds: float
    document: D


class Run:
    """One run in the store: its frozen configuration, parameters and step records."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        if not is_run_id(run_id):
            raise ConfigurationError(
                f"run id {run_id!r}",
                expected="letters, digits and dashes",
                next_command="retrain status shows the runs",
            )
        self.store, self.run_id = store, run_id

    @cached_property
    def config(self) -> Config:
        """The configuration as it was when the run began: an edit in the middle changes nothing."""
        return self._need("config", Config)

    @cached_property
    def parameters(self) -> RunParameters:
        """What was asked for when the run began."""
        return self._need("parameters", RunParameters)

    @property
    def told_source(self) -> str:
        """What it is about, for people: what was delivered, or, before it was found, what was asked for."""
        window = self.read("ingest", WindowDocument)
        return window.source if window else self.parameters.source

    def begin(self, config: Config, parameters: RunParameters) -> None:
        """File configuration and parameters, once.

        Raises:
            ConfigurationError: Another run has this id.
        """
        for name, document in (("parameters", parameters), ("config", config)):
            if not self.store.put_new(self.key(f"{name}.json"), to_json(document)):
                raise ConfigurationError(
                    f"run {self.run_id} exists with another {name}.json",
                    expected="a run id of its own for each run",
                    next_command="start the run again: it gets a new id",
                )

    def record(self, step: str, kind: type[D]) -> StepRecord[D] | None:
        """What a step recorded, or None while it has not."""
        return get_json(self.store, self.key(f"{step}.json"), StepRecord[kind])  # type: ignore[valid-type]

    def read(self, step: str, kind: type[D]) -> D | None:
        """The document of a step, or None while it has not run."""
        record = self.record(step, kind)
        return record.document if record else None

    def need(self, step: str, kind: type[D]) -> D:
        """The document of a step that must have run.

        Raises:
            ConfigurationError: It has not: the step was started out of order.
        """
        document = self.read(step, kind)
        if document is None:
            raise self._missing(step)
        return document

    def write(self, record: StepRecord[D]) -> None:
        """File a step's record; the first to do so wins."""
        self.store.put_new(self.key(f"{record.step}.json"), to_json(record))

    def replace(self, record: StepRecord[D]) -> None:
        """File a record that is derived from others, or that a later attempt outdates: the last to do so wins."""
        self.store.put(self.key(f"{record.step}.json"), to_json(record))

    def failures(self) -> list[Failure]:
        """Why steps crashed, oldest first; those that a later attempt has mended are left out."""
        records = [record for name in self.steps("failure-") if (record := self.record(name, Failure))]
        records = [r for r in records if self.store.head(self.key(f"{r.document.step}.json")) is None]
        return [record.document for record in sorted(records, key=lambda r: r.started)]

    def steps(self, prefix: str) -> list[str]:
        """Names of the records that start like that."""
        keys = [listed.key for listed in self.store.list_objects(self.key(prefix))]
        return [key.removeprefix(self.key("")).removesuffix(".json") for key in keys if key.endswith(".json")]

    def key(self, name: str) -> str:
        """Key of an object of this run."""
        return f"runs/{self.run_id}/{name}"

    def _need(self, name: str, kind: type[M]) -> M:
        document = get_json(self.store, self.key(f"{name}.json"), kind)
        if document is None:
            raise self._missing(name)
        return document

    def _missing(self, name: str) -> ConfigurationError:
        return ConfigurationError(
            f"run {self.run_id} has no record of {name}",
            expected="the steps before this one to have run",
            next_command="retrain status shows the runs of this store",
        )


def is_run_id(name: str) -> bool:
    """Whether a run can be called so."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", name) is not None


def open_run(config_path: str, run_id: str) -> Run:
    """Find a run through the configuration file that names its store.

    Raises:
        ConfigurationError: See `load_config`.
    """
    return Run(open_store(load_config(config_path).store), run_id)


def perform(step: str, run: Run, kind: type[D], work: Callable[[], D]) -> D:
    """Run a step once: hand out its record if there is one, else do the work and file it.

    An error is filed as `failure-<step>.json` for the report and the CLI, then raised.
    """
    if done := run.record(step, kind):
        logger.info("%s: already done: %s", step, done.document.sentence)
        return done.document
    started, clock = datetime.now(UTC), time.monotonic()
    logger.info("%s: started (run %s)", step, run.run_id)
    try:
        document = work()
    except Exception as error:
        _file_failure(run, step, started, error)
        raise
    run.write(StepRecord(step=step, started=started, seconds=time.monotonic() - clock, document=document))
    filed = run.need(step, kind)  # what is on record counts: another pod of the same step may have been faster
    logger.info("%s: %s", step, filed.sentence)
    return filed


def _file_failure(run: Run, step: str, started: datetime, error: Exception) -> None:
    exit_code = error.exit_code if isinstance(error, RetrainError) else 1
    failure = Failure(step=step, error=type(error).__name__, message=str(error), exit_code=exit_code)
    try:
        run.replace(StepRecord(step=f"failure-{step}", started=started, seconds=0.0, document=failure))
    except StoreUnreachable:
        logger.exception("%s: the failure could not be filed", step)  # the step's own error is what gets raised


def list_runs(store: ObjectStore) -> Iterator[Run]:
    """The runs of a store, oldest first by the time they were filed."""
    begun = [
        (o.modified, o.key.split("/")[1]) for o in store.list_objects("runs/") if o.key.endswith("/parameters.json")
    ]
    for _, run_id in sorted(begun):
        yield Run(store, run_id)
