"""Which version was champion after which, as the ledger tells. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.core.contracts import LedgerRecord


@dataclass(frozen=True, kw_only=True)
class Succession:
    """The champions of a model.

    Attributes:
        standing: The line that the present champion stands in, oldest first, itself last: each was replaced by the
            next. A version that was rolled back from is not in it.
        past: All that have been champion, the one that became it last at the end. Removed ones are in neither.
        undone: What was rolled back from and has not become champion again: each with the rollback that did it. Removed
            ones too.
    """

    standing: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    undone: Mapping[str, LedgerRecord]

    @property
    def previous(self) -> str | None:
        """The champion before the present one; None where there was none, or it was removed."""
        return self.standing[-2] if len(self.standing) > 1 else None


def read_succession(ledger: Sequence[LedgerRecord]) -> Succession:
    """Read who stands from a ledger, oldest record first.

    A promotion adds to the line; a rollback restores the line that its target stood in when it was promoted. So a
    rollback after a rollback goes further back, and one to a version that was rolled back from brings it back.
    """
    lines: dict[str, tuple[str, ...]] = {}
    past: dict[str, None] = {}
    undone: dict[str, LedgerRecord] = {}
    standing: tuple[str, ...] = ()
    for record in ledger:
        version = record.version
        if version is None or not (record.makes_champion or record.kind == "removal"):
            continue
        past.pop(version, None)
        if record.kind == "removal":
            continue
        past[version] = None
        before = standing
        if record.kind == "promotion":
            lines[version] = (*(other for other in standing if other != version), version)
        standing = lines.get(version, (version,))
        if record.kind == "rollback":
            undone |= dict.fromkeys(before, record)
        undone = {name: cause for name, cause in undone.items() if name not in standing}
    return Succession(standing=tuple(v for v in standing if v in past), past=tuple(past), undone=undone)


def promotion_of(ledger: Sequence[LedgerRecord], version: str) -> LedgerRecord | None:
    """The last record that promoted a version: it names the run that judged it, and its evidence."""
    return next((r for r in reversed(ledger) if (r.kind, r.version) == ("promotion", version)), None)
