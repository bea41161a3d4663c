"""Garbage collection from the command line: mark what nobody needs, print it, sweep it.

Interrupted at any point, the next one finishes. Nothing that becomes champion meanwhile can be hurt: the ledger is
looked at again before each deletion, and that a former champion goes is a record of its own in the ledger, right after
the records that were looked at, before its first file goes (see `promote.rollback`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from components.core.config import Config
from components.core.contracts import LedgerRecord, Lineage, Outcome
from components.core.errors import IntegrityError
from components.core.garbage import (
    Garbage,
    garbage_checkpoints,
    garbage_evidence,
    garbage_probes,
    garbage_versions,
    group_objects,
    reachable_versions,
    version_of,
)
from components.core.probe import PROBES, check_store
from components.core.registry import LostRace, Registry
from components.core.runs import Run, is_run_id
from components.core.storage import ListedObject, ObjectStore, UnfinishedWrite
from components.core.succession import read_succession
from pipelines.status import open_configured, user

logger = logging.getLogger(__name__)
VERSION_ID = re.compile(rb"[0-9a-f]{32}")


def print_garbage(config_path: Path, *, dry_run: bool, as_json: bool) -> None:
    """Delete what nobody needs any more, or only list it, and print a table, or one JSON object.

    Raises:
        IntegrityError: The ledger, or a version that stays, is not what was written: what it refers to is not known,
            and nothing is deleted.
    """
    config, store = open_configured(config_path, write=not dry_run)
    collector = Collector(store, config, datetime.now(UTC))
    garbage = list(collector.mark() if dry_run else collector.sweep(actor=user()))
    total = sum(one.bytes for one in garbage)
    if as_json:
        listed = [{"what": one.kind, "name": one.name, "why": one.why, "bytes": one.bytes} for one in garbage]
        print(json.dumps({"dry_run": dry_run, "garbage": listed, "bytes": total}, ensure_ascii=False))  # noqa: T201
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("what", f"{len(garbage)} would go" if dry_run else f"{len(garbage)} gone", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("why")
    table.add_column("size", decimal(total), justify="right", no_wrap=True)
    for one in garbage:
        table.add_row(one.kind, escape(one.name), escape(one.why), decimal(one.bytes))
    Console().print(table)


class Collector:
    """Marks and sweeps the garbage of one model, and the unfinished writes of its store."""

    def __init__(self, store: ObjectStore, config: Config, now: datetime) -> None:
        self.store, self.model, self.retention = store, config.model, config.retention
        self.registry = Registry(store, config.model)
        self.before = now - timedelta(days=config.retention.grace_days)
        self._lineages: dict[str, Lineage] = {}

    def mark(self) -> list[Garbage]:
        """List what can go. Changes nothing."""
        unfinished = [_as_garbage(write) for write in self._unfinished()]
        return [*self._mark_versions()[1], *self._mark_others(), *unfinished]

    def sweep(self, actor: str) -> Iterator[Garbage]:
        """Delete what can go; yields each when it is gone.

        Args:
            actor: Who does it: the removal of a former champion is in the ledger.

        Raises:
            UnsoundStore: The store does not keep create-only writes.
        """
        check_store(self.store)
        yield from self._sweep_versions(actor)
        for one in self._mark_others():
            self._delete(one)
            yield one
        for write in self._unfinished():
            self.store.discard(write)
            yield _as_garbage(write)

    def _mark_versions(self) -> tuple[list[LedgerRecord], list[Garbage]]:
        """The versions that can go, and the ledger that this rests on.

        It is read last: what a run names no longer, because it has promoted it, is in the ledger by then.
        """
        objects = list(self.store.list_objects(f"models/{self.model}/"))
        named = named_by_runs(self.store, self.before)
        ledger = self.registry.ledger()
        owners = {record.evidence: record.version for record in ledger}
        groups = group_objects(objects, lambda key: version_of(key, owners))
        complete = {name for name, group in groups.items() if group.complete}
        reachable = reachable_versions(
            ledger, named, lambda version: self._ancestry(version, complete), self.retention.champions
        )
        return ledger, garbage_versions(groups, reachable, ledger, self.before)

    def _mark_others(self) -> list[Garbage]:
        probes = garbage_probes(self.store.list_objects(PROBES), self.before)
        return [*self._mark_evidence(), *self._mark_checkpoints(), *probes]

    def _mark_evidence(self) -> list[Garbage]:
        objects = list(self.store.list_objects(f"models/{self.model}/evidence/"))
        named = named_by_runs(self.store, self.before)
        on_record = {record.evidence for record in self.registry.ledger()}  # last: see _mark_versions
        return garbage_evidence(
            group_objects(objects, lambda key: key.split("/")[3]), {*named, *on_record}, self.before
        )

    def _mark_checkpoints(self) -> list[Garbage]:
        objects = self.store.list_objects(f"checkpoints/{self.model}/")
        return garbage_checkpoints(group_objects(objects, lambda key: key.split("/")[2]), self.before)

    def _unfinished(self) -> list[UnfinishedWrite]:
        return [write for write in self.store.list_unfinished() if write.started < self.before]

    def _sweep_versions(self, actor: str) -> Iterator[Garbage]:
        ledger, marked = self._mark_versions()
        garbage = {one.name: one for one in marked}
        for name in list(garbage):
            if self.registry.length() != len(ledger):  # somebody wrote to it: what was concluded may not hold any more
                ledger, marked = self._mark_versions()
                garbage = {one.name: one for one in marked}
            if name not in garbage or self._written_to(name):
                continue
            one = garbage[name]
            if one.was_champion:
                try:
                    ledger.append(self._file_removal(one, ledger, actor))
                except LostRace:
                    continue  # at this very moment: the next gc decides
            self._delete(one)
            yield one

    def _written_to(self, version: str) -> bool:
        """Whether somebody has made this version again since it was marked."""
        listed = self.store.list_objects(f"models/{self.model}/versions/{version}/")
        return any(one.modified >= self.before for one in listed)

    def _file_removal(self, one: Garbage, ledger: list[LedgerRecord], actor: str) -> LedgerRecord:
        standing = read_succession(ledger).standing
        return self.registry.append(
            "removal",
            one.name,
            expected_champion=standing[-1] if standing else None,
            window=None,
            run_id=None,
            actor=actor,
            reason=one.why,
            after=len(ledger),
        )

    def _delete(self, one: Garbage) -> None:
        for key in one.keys:
            self.store.delete(key)

    def _ancestry(self, version: str, complete: Collection[str]) -> Iterator[str]:
        """A version, its parent and so on, as far as they are there, down to the one that was trained from scratch."""
        parent: str | None = version
        while parent in complete:
            assert parent is not None
            yield parent
            if parent not in self._lineages:
                self._lineages[parent] = self.registry.lineage(parent)
            lineage = self._lineages[parent]
            if lineage.hyperparameters.start == "fresh":
                return
            parent = lineage.parent


def named_by_runs(store: ObjectStore, before: datetime) -> set[str]:
    """All ids in the records of runs that wait for approval, or have no outcome and wrote something since `before`:
    versions, and others that do no harm. What has no outcome and wrote nothing for so long has failed, or was a plan.
    """
    runs: dict[str, list[ListedObject]] = {}
    for listed in store.list_objects("runs/"):
        if is_run_id(run_id := listed.key.split("/")[1]):  # a person's notes, a file manager's leftovers
            runs.setdefault(run_id, []).append(listed)
    named: set[str] = set()
    for run_id, records in runs.items():
        run, recent = Run(store, run_id), any(one.modified >= before for one in records)
        if _needs_its_versions(run, {one.key for one in records}, recent=recent):
            texts = (store.get(one.key) for one in records if one.key.endswith(".json"))
            named |= {match.decode() for text in texts for match in VERSION_ID.findall(text)}
    return named


def _needs_its_versions(run: Run, keys: Collection[str], *, recent: bool) -> bool:
    if run.key("outcome.json") not in keys:
        return recent
    try:
        return run.need("outcome", Outcome).outcome == "waiting"
    except IntegrityError as error:
        logger.warning("run %s cannot be read, and what it names stays: %s", run.run_id, error.found)
        return True


def _as_garbage(write: UnfinishedWrite) -> Garbage:
    return Garbage(
        kind="unfinished write",
        name=write.name,
        why=f"a write that was cut off, of {write.started:%Y-%m-%d}",
        bytes=write.size,
        keys=(),
    )
