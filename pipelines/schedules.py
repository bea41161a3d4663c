"""Recurring runs of the Kubeflow API: made equal to `kubeflow.schedules`, whoever asks, how often and at what moment.

Ours are those of the experiment whose description ends with a mark that names this model; no other is ever touched. The
mark has a digest of all that a recurring run was made from: one that has it is as it should be, for the API changes
nothing in a recurring run but whether it is enabled.

A changed one is replaced in this order: the new one is made, disabled; it is enabled; the old one is deleted. Whoever
dies on the way leaves the old one, or both, never none: a schedule that was lost is noticed by nobody. Both at once may
start two runs, if the clock strikes between two requests; they take what is new only once, and of two promotions the
ledger lets one win. The next `apply` ends it. A run under way goes on.

Not covered: recurring runs of an experiment that is no longer the configured one. Empty `kubeflow.schedules`, apply,
then change `kubeflow.experiment`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from components.core.config import Config, ScheduleConfig
from components.core.errors import RunFailed
from components.core.run_claims import run_arguments
from pipelines.client import NOT_FOUND, KubeflowClient, PipelineVersion, RecurringRun
from pipelines.kubeflow import KubeflowRefused

MARK = re.compile(r"\[retrain-schedule (\S+) ([0-9a-f]{16})\]$")
Action = Literal["kept", "created", "replaced", "enabled", "disabled", "deleted"]
TRIES = 5  # of those who apply at once, each may take away once what another one looks at
UNKNOWN = "0" * 16  # the digest where the pipeline was not uploaded yet: equals none


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was done, or with a dry run would be, about one schedule. `recurring_run_id` is that of the one in force; of
    the one that went where it was deleted; None where it is not made yet."""

    name: str
    action: Action
    recurring_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class ScheduleRow:
    """A schedule, configured or in the API. `state` is `enabled`, `disabled`, `not applied` (configured only) or `not
    configured` (in the API only)."""

    name: str
    rhythm: str
    state: Literal["enabled", "disabled", "not applied", "not configured"]
    recurring_run_id: str | None


def apply_schedules(client: KubeflowClient, config: Config, *, dry_run: bool = False) -> list[Change]:
    """Make the recurring runs of this model equal to `kubeflow.schedules`. Idempotent.

    Args:
        client: Of the same configuration.
        config: The configuration.
        dry_run: Change nothing, only say what would be.

    Raises:
        KubeflowUnavailable: No answer; what was done stays, and the same call again does the rest.
        ConfigurationError: RETRAIN_IMAGE is not set, or the API refuses, a cron that it does not understand for one.
    """
    wanted = config.kubeflow.schedules
    applying = _Applying(client, config, dry_run=dry_run)
    changes = [applying.settle(schedule) for schedule in wanted]
    names = {schedule.name for schedule in wanted}
    return [*changes, *applying.delete(run for run in _ours(client, config) if run.name not in names)]


def list_schedules(client: KubeflowClient, config: Config) -> list[ScheduleRow]:
    """The schedules that are configured, and those of this model in the API, by name."""
    present = _ours(client, config)
    wanted = {schedule.name: schedule for schedule in config.kubeflow.schedules}
    rows = [
        ScheduleRow(
            name=run.name,
            rhythm=run.rhythm,
            state="not configured" if run.name not in wanted else "enabled" if run.enabled else "disabled",
            recurring_run_id=run.recurring_run_id,
        )
        for run in present
    ]
    there = {run.name for run in present}
    rows += [
        ScheduleRow(name=name, rhythm=_rhythm(schedule), state="not applied", recurring_run_id=None)
        for name, schedule in wanted.items()
        if name not in there
    ]
    return sorted(rows, key=lambda row: row.name)


class _Applying:
    """One call of `apply_schedules`: the experiment and the version are looked up once."""

    def __init__(self, client: KubeflowClient, config: Config, *, dry_run: bool) -> None:
        self._client, self._config, self._dry_run = client, config, dry_run
        self._experiment_id: str | None = None
        self._version: PipelineVersion | None = None
        if config.kubeflow.schedules:
            self._experiment_id = client.find_experiment() if dry_run else client.ensure_experiment()
            self._version = client.find_pipeline() if dry_run else client.ensure_pipeline()

    def settle(self, schedule: ScheduleConfig) -> Change:
        """Have one recurring run for a schedule, as it says, and no other of its name."""
        for _ in range(TRIES):
            try:
                if change := self._try_to_settle(schedule):
                    return change
            except KubeflowRefused as error:  # it was there when we looked
                if error.code != NOT_FOUND:
                    raise
        raise RunFailed(
            f"the recurring run {schedule.name} is deleted as soon as it is made",
            expected="one configuration for each model and experiment",
            next_command="find who else applies schedules of this model, then retrain schedule apply",
        )

    def _try_to_settle(self, schedule: ScheduleConfig) -> Change | None:
        body = self._body(schedule)
        digest = UNKNOWN if body is None else _digest(body)
        present = self._named(schedule.name)
        action: Action = "kept"
        if not any(_digest_of(run) == digest for run in present):
            action = "replaced" if present else "created"
            if self._dry_run:
                return Change(name=schedule.name, action=action, recurring_run_id=None)
            self._client.create_recurring_run(body, self._description(digest))
            present = self._named(schedule.name)  # of two who apply at once both see both, and both keep the oldest
        same = [run for run in present if _digest_of(run) == digest]
        if not same:
            return None
        kept = min(same, key=lambda run: (run.created, run.recurring_run_id))
        if kept.enabled != schedule.enabled:
            if action == "kept":
                action = "enabled" if schedule.enabled else "disabled"
            if not self._dry_run:
                self._client.switch_recurring_run(kept.recurring_run_id, enabled=schedule.enabled)
        if (
            self.delete([run for run in present if run.recurring_run_id != kept.recurring_run_id])
            and action != "created"
        ):
            action = "replaced"  # also the rest of an apply that was cut off
        return Change(name=schedule.name, action=action, recurring_run_id=kept.recurring_run_id)

    def delete(self, runs: Iterable[RecurringRun]) -> list[Change]:
        """Delete recurring runs. Returns what was deleted."""
        changes = []
        for run in runs:
            if not self._dry_run:
                self._client.delete_recurring_run(run.recurring_run_id)
            changes.append(Change(name=run.name, action="deleted", recurring_run_id=run.recurring_run_id))
        return changes

    def _named(self, name: str) -> list[RecurringRun]:
        return [run for run in _ours(self._client, self._config) if run.name == name]

    def _body(self, schedule: ScheduleConfig) -> Any:
        if self._version is None or self._experiment_id is None:
            return None
        arguments = run_arguments(self._config, schedule.source, schedule.strategy)
        return self._client.recurring_run_body(
            schedule.name, _trigger(schedule), arguments, self._version, self._experiment_id
        )

    def _description(self, digest: str) -> str:
        mark = f"[retrain-schedule {self._config.model} {digest}]"
        return f"Kept by `retrain schedule apply`: change it in kubeflow.schedules. {mark}"


def _ours(client: KubeflowClient, config: Config) -> list[RecurringRun]:
    marks = ((run, MARK.search(run.description)) for run in client.recurring_runs())
    return [run for run, mark in marks if mark and mark[1] == config.model]


def _digest_of(run: RecurringRun) -> str | None:
    mark = MARK.search(run.description)
    return mark[2] if mark else None


def _digest(body: Any) -> str:
    from kfp_server_api import ApiClient  # type: ignore[import-untyped]

    sent = ApiClient().sanitize_for_serialization(body)  # without what is not set: another release may know more fields
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()[:16]


def _trigger(schedule: ScheduleConfig) -> Any:
    from kfp_server_api import V2beta1CronSchedule, V2beta1PeriodicSchedule, V2beta1Trigger

    if schedule.cron is not None:
        return V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=schedule.cron))
    assert schedule.interval_minutes is not None, "the configuration has one of the two"
    periodic = V2beta1PeriodicSchedule(interval_second=str(schedule.interval_minutes * 60))
    return V2beta1Trigger(periodic_schedule=periodic)


def _rhythm(schedule: ScheduleConfig) -> str:
    return schedule.cron if schedule.cron is not None else f"every {(schedule.interval_minutes or 0) * 60} s"
