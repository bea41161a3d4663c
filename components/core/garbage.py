"""What of a store nobody needs any more. Values in, values out: listings and references in, a list of garbage out.

Windows, run records, plans and the ledger are never garbage: the first are the user's data, the others are small and
tell what happened. Not covered: reading the references and deleting (`pipelines.garbage`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from components.core.contracts import LedgerRecord
from components.core.storage import ListedObject
from components.core.succession import Succession, read_succession

OF_A_VERSION = ("versions", "features", "drift")  # folders below models/<model>/ with one folder a version
Kind = Literal["version", "evidence", "checkpoints", "probe", "unfinished write"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Objects that stay or go together: `bytes` in all, `newest` the time of the last write. A version is `complete`
    where its manifest is there."""

    name: str
    keys: tuple[str, ...]
    bytes: int
    newest: datetime
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What can go: the keys in the order in which they are deleted, their bytes, and why."""

    kind: Kind
    name: str
    why: str
    bytes: int
    keys: tuple[str, ...]
    was_champion: bool = False


def group_objects(objects: Iterable[ListedObject], group_of: Callable[[str], str | None]) -> dict[str, Group]:
    """Put objects together by the name of their group; those without one are left out.

    A manifest comes first in its group: without it the rest is no version, and no training, whatever is left of it.
    """
    found: dict[str, list[ListedObject]] = {}
    for listed in objects:
        if (name := group_of(listed.key)) is not None:
            found.setdefault(name, []).append(listed)
    groups = {}
    for name, members in found.items():
        keys = sorted((one.key for one in members), key=lambda key: not key.endswith("/manifest.json"))
        groups[name] = Group(
            name=name,
            keys=tuple(keys),
            bytes=sum(one.size for one in members),
            newest=max(one.modified for one in members),
            complete=any(key.endswith(f"/versions/{name}/manifest.json") for key in keys),
        )
    return groups


def version_of(key: str, owners: Mapping[str | None, str | None]) -> str | None:
    """The version that a key below `models/<model>/` belongs to; None for the ledger, and for evidence that no record
    names. `owners` are the versions of the evidence that records name."""
    folder, _, rest = key.split("/", 2)[2].partition("/")
    name = rest.partition("/")[0]
    if folder in OF_A_VERSION:
        return name
    return owners.get(name) if folder == "evidence" else None


def reachable_versions(
    ledger: Sequence[LedgerRecord],
    named: Iterable[str],
    ancestry: Callable[[str], Iterable[str]],
    champions: int,
) -> set[str]:
    """The versions that something refers to.

    The last champions (of all, and of the line that the present one stands in, so that there is always a way back),
    what runs name, and the ancestors of each down to the last one that was trained from scratch, its anchor.

    Args:
        ledger: The model's, oldest record first.
        named: Versions that runs name which wait or have no outcome.
        ancestry: A version, its parent and so on, down to its anchor.
        champions: How many of the last ones stay.
    """
    succession = read_succession(ledger)
    roots = {*succession.standing[-champions:], *succession.past[-champions:], *named}
    return {version for root in roots for version in (root, *ancestry(root))}


def garbage_versions(
    groups: Mapping[str, Group], reachable: Collection[str], ledger: Sequence[LedgerRecord], before: datetime
) -> list[Garbage]:
    """The versions that nothing refers to and that nobody has written to since `before`, by name."""
    succession = read_succession(ledger)
    removed = {record.version for record in ledger if record.kind == "removal"}
    return [
        Garbage(
            kind="version",
            name=group.name,
            why=_why(group, succession, removed),
            bytes=group.bytes,
            keys=group.keys,
            was_champion=group.name in succession.past,
        )
        for _, group in sorted(groups.items())
        if group.name not in reachable and group.newest < before
    ]


def garbage_evidence(groups: Mapping[str, Group], named: Collection[str | None], before: datetime) -> list[Garbage]:
    """The evidence that nobody has written to since `before`, and that is not `named` by records or runs."""
    why = "no promotion rests on it, and no run needs it"
    return [
        Garbage(kind="evidence", name=group.name, why=why, bytes=group.bytes, keys=group.keys)
        for _, group in sorted(groups.items())
        if group.name not in named and group.newest < before
    ]


def garbage_checkpoints(groups: Mapping[str, Group], before: datetime) -> list[Garbage]:
    """The checkpoints of trainings that nobody has gone on with since `before`: one that runs writes all the time."""
    why = f"nobody has gone on with this training since {before:%Y-%m-%d}"
    return [
        Garbage(kind="checkpoints", name=group.name, why=why, bytes=group.bytes, keys=group.keys)
        for _, group in sorted(groups.items())
        if group.newest < before
    ]


def garbage_probes(objects: Iterable[ListedObject], before: datetime) -> list[Garbage]:
    """What probes of the store that were killed have left."""
    why = "a probe of the store was cut off"
    return [
        Garbage(kind="probe", name=one.key, why=why, bytes=one.size, keys=(one.key,))
        for one in objects
        if one.modified < before
    ]


def _why(group: Group, succession: Succession, removed: Collection[str | None]) -> str:
    if group.name in succession.past:
        since = len(succession.past) - 1 - succession.past.index(group.name)
        return f"was champion; {since} others have been since"
    if group.name in removed:
        return "was champion; its removal was cut off"
    if not group.complete:
        return "has no manifest: never finished, or removed in part"
    return "was never promoted, and no run needs it"
