"""Where the trials of a search are kept: Optuna's journal in the object store, so that a lost pod loses one trial.

    <prefix>/<n:08d>.json    one operation of the journal, create-only, gapless from 0

Not covered: what the operations mean (Optuna), and which trials there are (`search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from optuna.storages.journal import BaseJournalBackend

from components.core.contracts import Document
from components.core.storage import ObjectStore, get_json, to_json


class Entry(Document):
    """One operation. The nonce tells it from an equal one of another writer, which `put_new` would take for its own."""

    nonce: str
    log: dict[str, Any]


class StoreJournal(BaseJournalBackend):
    """Optuna's journal on an object store. Any number of processes and threads may append at the same time, where
    `put_new` lets only one writer win: Swift, for one, lets several, and then keeps the last.

    Nobody writes a number before the one below it is known to be taken, so there are no gaps, and reading goes up
    until a number is free. A listing would not do: one of a directory that is being written to may miss an entry and
    show a later one.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        """Open a journal; nothing is contacted yet.

        Args:
            store: Where it lies.
            prefix: Of its keys, without a slash at the end.
        """
        self.store, self.prefix = store, prefix
        self._end = 0  # where to try first: never beyond the first free number

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Read the operations from a number on, in order: one request each, and one that finds nothing.

        Raises:
            IntegrityError: An entry is not what was written.
            StoreUnreachable: The store does not answer.
        """
        logs: list[dict[str, Any]] = []
        while entry := get_json(self.store, self._key(log_number_from + len(logs)), Entry):
            logs.append(entry.log)
        self._end = log_number_from + len(logs)
        return logs

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append operations, in order; those of others may come between.

        Raises:
            StoreUnreachable: The store does not answer; the operation may have been kept or not.
        """
        for log in logs:
            entry, number = to_json(Entry(nonce=uuid4().hex, log=log)), self._end
            while not self.store.put_new(self._key(number), entry):
                number += 1
            self._end = number + 1

    def _key(self, number: int) -> str:
        return f"{self.prefix}/{number:08d}.json"
