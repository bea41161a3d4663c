"""Model versions, the evidence they were promoted on, and the ledger that says which of them is the champion.

Versions and evidence bundles are immutable folders of files (`artifacts`). The ledger is a gapless, hash-chained,
create-only log; the champion is what its last promotion or rollback says. Each record has a head, its digest in a file
of its own, so that an edit of the newest record, or its loss, is found. Not covered: who may promote (the gate
decides) and what the files mean (`models`).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from components.core.artifacts import Artifact, Manifest, list_artifacts, save_artifact
from components.core.contracts import Champion, LedgerKind, LedgerRecord, Lineage
from components.core.errors import IntegrityError, StoreUnreachable
from components.core.storage import ObjectStore, sha256_hex, to_json
from components.core.succession import read_succession

logger = logging.getLogger(__name__)
# Files of a version that updates of it may use; not every version has them.
EXEMPLARS, FISHER = "exemplars.parquet", "fisher.safetensors"


class LostRace(Exception):
    """Somebody else wrote to the ledger first: what was concluded may no longer hold. `champion` is the present one."""

    def __init__(self, champion: str | None) -> None:
        super().__init__(champion)
        self.champion = champion


class RolledBack(LostRace):
    """What was to be promoted, or what it was made from, was rolled back from: a person's word stands."""


LONGEST_CHAIN = 100  # versions looked back through
READERS = 16  # records of the ledger read at once


class Registry:
    """One model's versions and ledger in a store."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self.store, self.model = store, model

    def version(self, version: str) -> Artifact:
        """The files of a version."""
        return Artifact(store=self.store, folder=f"{self._versions}/{version}", digest=version)

    def evidence(self, digest: str) -> Artifact:
        """The files of an evidence bundle."""
        return Artifact(store=self.store, folder=f"{self._evidence}/{digest}", digest=digest)

    def evidence_of(self, version: str) -> str | None:
        """Digest of the evidence that a version was promoted on last; None where the ledger names none.

        Raises:
            IntegrityError: See `ledger`, for the records read.
        """
        made = (record for record, _ in self._backwards() if record.makes_champion and record.version == version)
        return next((record.evidence for record in made if record.evidence), None)

    def save_version(self, files: dict[str, bytes]) -> str:
        """Write a version and return its id: see `save_artifact`."""
        return save_artifact(self.store, self._versions, files).digest

    def save_evidence(self, files: dict[str, bytes]) -> str:
        """Write an evidence bundle and return its digest: see `save_artifact`."""
        return save_artifact(self.store, self._evidence, files).digest

    def read_file(self, version: str, name: str) -> bytes:
        """Read one file of a version: see `Artifact.read`."""
        return self.version(version).read(name)

    def verify_version(self, version: str) -> Manifest:
        """Check every file of a version: see `Artifact.verify`."""
        return self.version(version).verify()

    def manifest(self, version: str) -> Manifest:
        """The list of a version's files: see `Artifact.manifest`."""
        return self.version(version).manifest()

    def ledger(self) -> list[LedgerRecord]:
        """Read the whole ledger, oldest first.

        Raises:
            IntegrityError: It has a gap, or a record does not name the digest of the one before it.
        """
        return [record for record, _ in self._backwards()][::-1]

    def length(self) -> int:
        """How many records the ledger has; they are not read."""
        return sum(1 for _ in self.store.list_objects(f"{self._ledger}/"))

    def lineage(self, version: str) -> Lineage:
        """Where a version comes from.

        Raises:
            IntegrityError: See `read_file`.
        """
        return Lineage.model_validate_json(self.read_file(version, "lineage.json"), extra="ignore")

    def ancestors(self, version: str) -> Iterator[tuple[str, Lineage]]:
        """A version and where it comes from, then its parent, and so on, LONGEST_CHAIN at most.

        Raises:
            IntegrityError: See `read_file`; of the one that comes next.
        """
        parent: str | None = version
        for _ in range(LONGEST_CHAIN):
            if parent is None:
                return
            lineage = self.lineage(parent)
            yield parent, lineage
            parent = lineage.parent

    def record(self, number: int) -> LedgerRecord:
        """One record of the ledger, without a look at the others."""
        return LedgerRecord.model_validate_json(self.store.get(self._record_key(number)), extra="ignore")

    def verify_ledger(self) -> int:
        """Check the whole ledger, and its end by the heads: the newest record has no follower that names it.

        Returns:
            How many records it has.

        Raises:
            IntegrityError: See `ledger`; or the newest record that has a head is gone, or is another one.
        """
        return len(self._whole()[0])

    def _whole(self) -> tuple[list[tuple[LedgerRecord, str]], int]:
        """All records with their digests, newest first, and the number of the newest that has a head."""
        heads = [listed.key for listed in self.store.list_objects(f"{self._heads}/")]  # before the ledger, which grows
        chain = list(self._backwards())
        if not heads:
            return chain, 0
        name = heads[-1].rpartition("/")[2]
        if not re.fullmatch(r"\d{10}", name):
            raise self._broken_ledger(f"{heads[-1]} is no head of a record")
        if int(name) > len(chain):
            raise self._broken_ledger(f"record {int(name)} is gone")
        if self.store.get(heads[-1]) != chain[len(chain) - int(name)][1].encode():
            raise self._broken_ledger(_unlike(int(name), heads[-1]))
        return chain, int(name)

    def versions(self) -> list[str]:
        """Ids of all versions whose files are complete."""
        return list_artifacts(self.store, self._versions)

    def champion(self) -> Champion | None:
        """The present champion, or None before the first promotion.

        Reads the ledger from its end, no further than it must.

        Raises:
            IntegrityError: See `ledger`, for the records read.
        """
        return next((champion for record, _ in self._backwards() if (champion := _champion(record))), None)

    def _backwards(self) -> Iterator[tuple[LedgerRecord, str]]:
        """Records from the newest to the oldest, each with the SHA-256 of its bytes, checked against its follower."""
        keys = [listed.key for listed in self.store.list_objects(f"{self._ledger}/")]
        if misplaced := [key for n, key in enumerate(keys, start=1) if key != self._record_key(n)]:
            raise self._broken_ledger(f"{misplaced[0]} stands where record {keys.index(misplaced[0]) + 1} belongs")
        expected: str | None = None
        for number, data in self._read_back(len(keys)):
            digest = sha256_hex(data)
            try:
                record = LedgerRecord.model_validate_json(data, extra="ignore")
            except ValueError as error:
                raise self._broken_ledger(f"record {number} is no ledger record: {error}") from error
            if record.number != number or (number < len(keys) and digest != expected):
                raise self._broken_ledger(f"record {number} is not the one that the record after it follows")
            if (record.previous is None) != (number == 1):
                raise self._broken_ledger(f"record {number} names the record before it wrongly")
            yield record, digest
            expected = record.previous

    def _read_back(self, last: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of the records from the last to the first, read ahead in growing batches: who looks for the
        champion reads few, and who reads all waits for one batch after another instead of one record."""
        batch = 1
        with ThreadPoolExecutor(READERS) as readers:
            while last:
                numbers = range(last, max(0, last - batch), -1)
                yield from zip(numbers, readers.map(self.store.get, map(self._record_key, numbers)), strict=True)
                last, batch = last - len(numbers), min(2 * batch, 4 * READERS)

    def append(
        self,
        kind: LedgerKind,
        version: str | None,
        *,
        expected_champion: str | None,
        window: str | None,
        run_id: str | None,
        actor: str,
        reason: str,
        evidence: str | None = None,
        after: int | None = None,
        unless_undone: Collection[str | None] = (),
    ) -> LedgerRecord:
        """Add one record to the ledger, if the champion still is `expected_champion`.

        Exactly one of several concurrent writers gets each number: create-only, and a nonce in the record tells it
        from another's. A run that has appended such a record before gets that one back, so a retried step adds none.
        The head, which vouches for the newest record, follows it; if it is lost, the next append makes up for it.

        Args:
            after: How many records the ledger must have, where any other one could change what was concluded.
            unless_undone: Versions of which none may have been rolled back from.

        Raises:
            LostRace: The champion is another one now, or there are more records than `after`.
            RolledBack: One of `unless_undone` was.
            IntegrityError: The ledger is not what was written; nothing follows it.
        """
        nonce = uuid.uuid4().hex
        while True:
            chain, vouched = self._whole()
            if vouched < len(chain):
                self._write_head(len(chain), chain[0][1])
            for record, _ in chain:
                if run_id is not None and (record.run_id, record.kind, record.version) == (run_id, kind, version):
                    return record
            champion = next((champion for record, _ in chain if (champion := _champion(record))), None)
            if read_succession([record for record, _ in reversed(chain)]).undone.keys() & {*unless_undone}:
                raise RolledBack(champion.version if champion else None)
            before = champion.version if champion else None
            if before != expected_champion or after not in (None, len(chain)):
                raise LostRace(before)
            record = LedgerRecord(
                number=len(chain) + 1,
                kind=kind,
                version=version,
                evidence=evidence,
                champion_before=before,
                window=window,
                run_id=run_id,
                actor=actor,
                reason=reason,
                nonce=nonce,
                previous=chain[0][1] if chain else None,
                created=datetime.now(UTC),
            )
            data = to_json(record)
            if self.store.put_new(self._record_key(record.number), data):
                self._write_head(record.number, sha256_hex(data))
                return record

    def _write_head(self, number: int, digest: str) -> None:
        """Vouch for a record. Whether it succeeds changes nothing about the record.

        Raises:
            IntegrityError: The head is there, and vouches for other bytes.
        """
        key = f"{self._heads}/{number:010d}"
        try:
            if not self.store.put_new(key, digest.encode()):
                raise self._broken_ledger(_unlike(number, key))
        except StoreUnreachable as error:
            logger.warning("record %d of the ledger has no head yet: %s", number, error.found)

    @property
    def _versions(self) -> str:
        return f"models/{self.model}/versions"

    @property
    def _evidence(self) -> str:
        return f"models/{self.model}/evidence"

    @property
    def _ledger(self) -> str:
        return f"models/{self.model}/ledger"

    @property
    def _heads(self) -> str:
        return f"models/{self.model}/heads"

    def _record_key(self, number: int) -> str:
        return f"{self._ledger}/{number:010d}.json"

    def _broken_ledger(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the ledger of {self.model} is broken: {what}",
            expected=f"a gapless, hash-chained sequence below {self.store.uri}/{self._ledger}",
            next_command="restore the ledger from a backup; do not edit it by hand",
        )


def _unlike(number: int, head: str) -> str:
    return f"record {number} is not the one that was written, or {head} is not"


def _champion(record: LedgerRecord) -> Champion | None:
    """The champion that a record makes, if it makes one."""
    if not record.makes_champion or record.version is None:
        return None
    return Champion(version=record.version, number=record.number, run_id=record.run_id, created=record.created)
