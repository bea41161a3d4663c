"""Runs through the Kubeflow Pipelines API: the only place that asks it for anything.

Experiments, pipelines and versions have names that are unique, so that of many who make one at once all but one are
told that it is there (409), and look it up. Runs and recurring runs have not: what may have been made is looked for
before it is made again. Nothing is kept between calls but the compiled pipeline: what somebody deletes is made anew.

Not covered: how requests travel (`pipelines.kubeflow`), which recurring runs there should be (`pipelines.schedules`),
logs (`pipelines.pods`).
"""

from __future__ import annotations

import json
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from components.core.config import Config
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError, RunFailed
from pipelines import kubeflow
from pipelines.compiling import compile_for_cluster, version_name
from pipelines.kubeflow import Connection, KubeflowRefused, KubeflowUnavailable
from pipelines.trigger.launcher import RunState

logger = logging.getLogger(__name__)
Found = TypeVar("Found")

CONFLICT, BAD_REQUEST = 409, 400
NOT_FOUND = 5  # gRPC's code: a 404 without it comes from something else on the way, and says nothing about a run
PAGE = 200  # the most that the API gives
OLDEST_FIRST = "created_at asc"
# What is in neither list goes on: a run that is being terminated still has pods, a paused one has not ended. A run that
# somebody terminated is FAILED or CANCELED, by release.
SUCCEEDED, FAILED = ("SUCCEEDED", "SKIPPED"), ("FAILED", "CANCELED")
KEEP_RUNS = "ORPHAN"  # by default, whoever deletes a recurring run deletes its runs' workflows, the one under way too
TELL_SECONDS = 60.0  # between two signs of life while waiting
SILENCE_SECONDS = 600.0  # longer than an upgrade of Kubeflow takes


@dataclass(frozen=True, kw_only=True)
class PipelineVersion:
    """A version of the pipeline that the API has."""

    pipeline_id: str
    version_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run is getting on: `state` for programs, `word` is Kubeflow's own."""

    state: RunState
    word: str


@dataclass(frozen=True, kw_only=True)
class RecurringRun:
    """A recurring run as the API has it. `rhythm` is its cron, or `every N s`."""

    recurring_run_id: str
    name: str
    description: str
    enabled: bool
    created: datetime
    rhythm: str


class KubeflowClient:
    """Starts, finds and watches runs. See `Launcher` for what `find`, `start` and `state` promise."""

    def __init__(self, config: Config, compile_to: Callable[[Path], Path] = compile_for_cluster) -> None:
        """
        Args:
            config: The whole configuration; section `kubeflow` is used.
            compile_to: Writes the pipeline's YAML to a path.

        Raises:
            ConfigurationError: It is not known where the API is. No request is made yet.
        """
        self._config, self._compile_to = config.kubeflow, compile_to
        self._api = Connection(self._config)
        self._compiled: tuple[str, bytes] | None = None
        self._compiling = Lock()

    def ensure_experiment(self) -> str:
        """Id of the experiment; it is made where there is none.

        Raises:
            KubeflowUnavailable, ConfigurationError: See `Connection.call`, here and below.
        """
        from kfp_server_api import V2beta1Experiment  # type: ignore[import-untyped]

        body = V2beta1Experiment(display_name=self._config.experiment, namespace=self._config.namespace)
        create = self._api.experiments.experiment_service_create_experiment
        return self.find_experiment() or self._create(
            lambda: str(self._api.call(create, body).experiment_id), self.find_experiment, unique=True
        )

    def find_experiment(self) -> str | None:
        """Id of the experiment, None where there is none."""
        listed = self._api.call(
            self._api.experiments.experiment_service_list_experiments,
            namespace=self._config.namespace,
            filter=_equals("display_name", self._config.experiment),
            page_size=1,
        )
        return next((str(experiment.experiment_id) for experiment in listed.experiments or ()), None)

    def ensure_pipeline(self) -> PipelineVersion:
        """The version of the pipeline with the image of RETRAIN_IMAGE; it is uploaded where there is none.

        Raises:
            ConfigurationError: RETRAIN_IMAGE is not set.
        """
        name, compiled = self.compiled()
        pipeline_id = self._find_pipeline_id() or self._create_pipeline()
        return self._find_version(pipeline_id, name) or self._create(
            lambda: self._upload(pipeline_id, name, compiled),
            lambda: self._find_version(pipeline_id, name),
            unique=True,
        )

    def find_pipeline(self) -> PipelineVersion | None:
        """The same, None where it was not uploaded yet. Changes nothing."""
        name, _ = self.compiled()
        pipeline_id = self._find_pipeline_id()
        return self._find_version(pipeline_id, name) if pipeline_id else None

    def find(self, name: str) -> str | None:
        experiment_id = self.find_experiment()
        return self._find_run(experiment_id, name) if experiment_id else None

    def start(self, name: str, arguments: RunArguments) -> str:
        """Start a run; an answer that was lost is made up for by looking for the name.

        Where even that does not tell, the run may yet appear: the caller looks again later, and starts it then.
        """
        from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run

        experiment_id, version = self.ensure_experiment(), self.ensure_pipeline()
        body = V2beta1Run(
            experiment_id=experiment_id,
            display_name=name,
            pipeline_version_reference=V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
            ),
            runtime_config=self._runtime_config(arguments),
            service_account=self._config.service_account,
        )
        return self._create(
            lambda: str(self._api.call(self._api.runs.run_service_create_run, body).run_id),
            lambda: self._find_run(experiment_id, name),
            unique=False,
        )

    def state(self, run_id: str) -> RunState:
        if run_id.isdecimal():  # a local run's, whose own end will be in the log of claims; the API's are UUIDs
            return "running"
        return self.look(run_id).state

    def look(self, run_id: str) -> RunStatus:
        """How a run is getting on, in Kubeflow's word too.

        Raises:
            KubeflowUnavailable: No answer.
        """
        try:
            run = self._api.call(self._api.runs.run_service_get_run, run_id)
        except KubeflowRefused as error:
            if error.code != NOT_FOUND:
                raise
            return RunStatus(state="gone", word="GONE")
        word = run.state or "PENDING"
        return RunStatus(
            state="succeeded" if word in SUCCEEDED else "failed" if word in FAILED else "running", word=word
        )

    def terminate(self, run_id: str) -> None:
        """Stop a run; one that has ended, or is gone, stays so. Its exit task is killed too: nothing is reported."""
        try:
            self._api.call(self._api.runs.run_service_terminate_run, run_id)
        except KubeflowRefused as error:
            if error.code == NOT_FOUND:
                return
            if error.status != BAD_REQUEST or self.state(run_id) == "running":
                raise

    def wait(
        self,
        run_id: str,
        on_state: Callable[[str, float], None],
        poll_seconds: float,
        limit_seconds: float | None = None,
    ) -> RunStatus:
        """Wait until a run has ended, however it did; through pauses of the API of ten minutes.

        Args:
            run_id: The run.
            on_state: Told Kubeflow's word and the seconds so far: when the word changes, and once a minute.
            poll_seconds: Between two looks.
            limit_seconds: Longest wait; None: as long as it takes.

        Returns:
            How it ended; `running` where the limit was reached before.

        Raises:
            KubeflowUnavailable: Not one answer, or none for ten minutes.
        """
        began = heard = time.monotonic()
        status: RunStatus | None = None
        told, told_at = "", began
        while True:
            now = time.monotonic()
            try:
                status, heard = self.look(run_id), now
            except KubeflowUnavailable as error:
                if status is None or now - heard > SILENCE_SECONDS:
                    raise
                logger.warning("run %s: %s", run_id, error.found)
            if status.word != told or now - told_at >= TELL_SECONDS:
                told, told_at = status.word, now
                on_state(told, now - began)
            rest = poll_seconds if limit_seconds is None else min(poll_seconds, limit_seconds - (now - began))
            if status.state != "running" or rest <= 0:
                return status
            time.sleep(rest)

    def recurring_runs(self) -> list[RecurringRun]:
        """All recurring runs of the experiment, the oldest first."""
        experiment_id = self.find_experiment()
        if experiment_id is None:
            return []
        return [
            _recurring_run(found)
            for found in self._pages(
                self._api.recurring_runs.recurring_run_service_list_recurring_runs,
                "recurring_runs",
                experiment_id=experiment_id,
                sort_by=OLDEST_FIRST,
            )
        ]

    def create_recurring_run(self, body: Any, description: str) -> str:
        """Make a recurring run, disabled: one that nobody hears of starts nothing. Returns its id.

        Args:
            body: See `recurring_run_body`.
            description: Of this recurring run and no other, so that it is found where the answer was lost.
        """
        body.description, body.mode = description, "DISABLE"

        def look() -> str | None:
            return next((r.recurring_run_id for r in self.recurring_runs() if r.description == description), None)

        create = self._api.recurring_runs.recurring_run_service_create_recurring_run
        return self._create(lambda: str(self._api.call(create, body).recurring_run_id), look, unique=False)

    def recurring_run_body(
        self, name: str, trigger: Any, arguments: RunArguments, version: PipelineVersion, experiment_id: str
    ) -> Any:
        """A recurring run of one run at a time, which does not make up for what it missed."""
        from kfp_server_api import V2beta1PipelineVersionReference, V2beta1RecurringRun

        return V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
            ),
            runtime_config=self._runtime_config(arguments),
            service_account=self._config.service_account,
            trigger=trigger,
            no_catchup=True,
            max_concurrency="1",
        )

    def switch_recurring_run(self, recurring_run_id: str, *, enabled: bool) -> None:
        """Enable or disable a recurring run; its run under way goes on."""
        service = self._api.recurring_runs
        switch = (
            service.recurring_run_service_enable_recurring_run
            if enabled
            else service.recurring_run_service_disable_recurring_run
        )
        self._api.call(switch, recurring_run_id)

    def delete_recurring_run(self, recurring_run_id: str) -> None:
        """Delete a recurring run, or find that somebody has; its run under way goes on."""
        delete = self._api.recurring_runs.recurring_run_service_delete_recurring_run
        try:
            self._api.call(delete, recurring_run_id, propagation_policy=KEEP_RUNS)
        except KubeflowRefused as error:
            if error.code != NOT_FOUND:
                raise

    def _runtime_config(self, arguments: RunArguments) -> Any:
        from kfp_server_api import V2beta1RuntimeConfig

        return V2beta1RuntimeConfig(parameters={**arguments.model_dump(), "config": self._config.config})

    def compiled(self) -> tuple[str, bytes]:
        """Name and YAML of the version; compiled once in the life of the client, for RETRAIN_IMAGE is fixed."""
        with self._compiling:
            if self._compiled is None:
                with tempfile.TemporaryDirectory(prefix="retrain-compile-") as folder:
                    compiled = self._compile_to(Path(folder, "pipeline.yaml")).read_bytes()
                self._compiled = version_name(self._config.pipeline, compiled), compiled
            return self._compiled

    def _find_pipeline_id(self) -> str | None:
        get = self._api.pipelines.pipeline_service_get_pipeline_by_name
        try:
            return str(self._api.call(get, self._config.pipeline, namespace=self._config.namespace).pipeline_id)
        except KubeflowRefused as error:
            if error.code != NOT_FOUND:
                raise
            return None

    def _create_pipeline(self) -> str:
        """Make the pipeline, empty: uploading it would also make a version, of another name."""
        from kfp_server_api import V2beta1Pipeline

        body = V2beta1Pipeline(
            name=self._config.pipeline, display_name=self._config.pipeline, namespace=self._config.namespace
        )
        create = self._api.pipelines.pipeline_service_create_pipeline
        return self._create(lambda: str(self._api.call(create, body).pipeline_id), self._find_pipeline_id, unique=True)

    def _find_version(self, pipeline_id: str, name: str) -> PipelineVersion | None:
        listed = self._api.call(
            self._api.pipelines.pipeline_service_list_pipeline_versions,
            pipeline_id,
            filter=_equals("name", name),
            page_size=1,
        )
        for version in listed.pipeline_versions or ():
            return PipelineVersion(pipeline_id=pipeline_id, version_id=str(version.pipeline_version_id), name=name)
        return None

    def _upload(self, pipeline_id: str, name: str, compiled: bytes) -> PipelineVersion:
        with tempfile.TemporaryDirectory(prefix="retrain-upload-") as folder:
            path = Path(folder, f"{name}.yaml")
            path.write_bytes(compiled)
            upload = self._api.uploads.upload_pipeline_version
            version = self._api.call(upload, str(path), name=name, pipelineid=pipeline_id)
        logger.info("uploaded the pipeline as version %s", name)
        return PipelineVersion(pipeline_id=pipeline_id, version_id=str(version.pipeline_version_id), name=name)

    def _find_run(self, experiment_id: str, name: str) -> str | None:
        listed = self._api.call(
            self._api.runs.run_service_list_runs,
            experiment_id=experiment_id,
            filter=_equals("display_name", name),
            sort_by=OLDEST_FIRST,
            page_size=1,
        )
        return next((str(run.run_id) for run in listed.runs or ()), None)

    def _pages(self, operation: Callable[..., Any], name: str, **query: Any) -> Iterator[Any]:
        token: str | None = None
        while token != "":
            listed = self._api.call(operation, page_size=PAGE, **query, **({"page_token": token} if token else {}))
            yield from getattr(listed, name) or ()
            token = listed.next_page_token or ""

    def _create(self, create: Callable[[], Found], look: Callable[[], Found | None], *, unique: bool) -> Found:
        """Have one thing made, though answers may be lost and others make the same.

        Args:
            create: Asks for it.
            look: Looks whether it is there.
            unique: The API makes no two of it. Else it is not asked for again after a request that may still be at
                work: one that the look missed would be doubled.
        """
        for attempt in range(1, self._config.max_attempts + 1):
            try:
                return create()
            except KubeflowRefused as error:
                if error.status != CONFLICT or (found := look()) is None:
                    raise
                return found
            except KubeflowUnavailable as error:
                time.sleep(kubeflow.BACKOFF_SECONDS * 2 ** (attempt - 1) * random.uniform(1, 2))  # noqa: S311
                if (found := look()) is not None:
                    return found
                if attempt == self._config.max_attempts or not (unique or error.refused):
                    raise
        raise AssertionError("a request has one attempt or more")


def find_run_id(client: KubeflowClient, run: str) -> str:
    """The id of a run, which may be given by its name.

    Raises:
        ConfigurationError: There is no run of that name.
    """
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", run):
        return run
    if (run_id := client.find(run)) is not None:
        return run_id
    raise ConfigurationError(
        f"no run is called {run!r}",
        expected="the whole id of a run, or the name of one in the experiment kubeflow.experiment",
        next_command="retrain status lists the runs",
    )


def wait_for_success(
    client: KubeflowClient, run_id: str, poll_seconds: float, limit_seconds: float | None = None
) -> RunStatus:
    """Wait until a run has succeeded, and log how it is getting on. See `KubeflowClient.wait`.

    Raises:
        RunFailed: It failed, was cancelled or deleted, or has not ended within the limit.
    """

    def tell(word: str, seconds: float) -> None:
        logger.info("run %s: %s, %.0f min", run_id, word, seconds / 60)

    status = client.wait(run_id, tell, poll_seconds, limit_seconds)
    if status.state == "running":
        assert limit_seconds is not None, "else it has ended"
        raise RunFailed(
            f"run {run_id} is {status.word} after {limit_seconds / 60:g} minutes",
            expected="its end",
            next_command=f"retrain wait {run_id} goes on waiting; retrain logs {run_id} shows what it does",
        )
    if status.state != "succeeded":
        raise RunFailed(
            f"run {run_id}: {status.word}",
            expected="a run that succeeds",
            next_command=f"retrain explain {run_id}, and retrain logs {run_id}"
            if status.state == "failed"
            else "retrain status: somebody deleted the run; what it stored is still there",
        )
    return status


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})


def _recurring_run(found: Any) -> RecurringRun:
    cron = found.trigger.cron_schedule if found.trigger else None
    periodic = found.trigger.periodic_schedule if found.trigger else None
    return RecurringRun(
        recurring_run_id=str(found.recurring_run_id),
        name=str(found.display_name),
        description=found.description or "",
        enabled=found.status == "ENABLED",
        created=found.created_at,
        rhythm=cron.cron if cron else f"every {periodic.interval_second} s" if periodic else "never",
    )
