"""Ledgers without a store: what the tests of succession and garbage start from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from components.core.contracts import LedgerKind, LedgerRecord

START = datetime(2026, 1, 1, tzinfo=UTC)
Entry = tuple[LedgerKind, str | None]


def ledger_of(entries: Sequence[Entry], window: str | None = None) -> list[LedgerRecord]:
    """One record a day. A promotion of version `b` is of the run `run-b` on the window `window-b`."""
    champion, records = None, []
    for number, (kind, version) in enumerate(entries, start=1):
        made = kind == "promotion"
        record = LedgerRecord(
            number=number,
            kind=kind,
            version=version,
            champion_before=champion,
            window=f"window-{version}" if made else window,
            run_id=f"run-{version}" if made else None,
            actor="ada",
            reason=f"because of {number}",
            nonce="0",
            previous=None,
            created=START + timedelta(days=number),
        )
        records.append(record)
        champion = version if record.makes_champion else champion
    return records


def told(text: str) -> list[LedgerRecord]:
    """A ledger in short: `+b` promotes b, `<a` rolls back to a, `-a` removes a, `~c` turns c down."""
    kinds: dict[str, LedgerKind] = {"+": "promotion", "<": "rollback", "-": "removal", "~": "rejection"}
    return ledger_of([(kinds[word[0]], word[1:]) for word in text.split()])
