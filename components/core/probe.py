"""What a store really keeps of what it answers, tried on objects of the probe's own.

Some servers say 200 to a condition that they ignore. The ledger rests on create-only, on listings that show what was
written and on reads that give what was asked for: without these nothing is promoted. If-Match and checksums are used by
nothing that correctness rests on, so a store without them only gets a warning. Not covered: what shows under concurrent
writers alone (`contention`), and speed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from components.core.contracts import Document
from components.core.errors import ConditionUnsupported, StoreUnreachable, UnsoundStore
from components.core.storage import ObjectStore

logger = logging.getLogger(__name__)
PROBES = "probe/"
FIRST, SECOND = b"0123456789 first", b"0123456789 second"


class Finding(Document):
    """One thing that was looked at. `required`: nothing is promoted where it did not pass."""

    name: str
    passed: bool
    required: bool
    sentence: str


def check_store(store: ObjectStore) -> None:
    """Refuse a store that does not keep what the ledger rests on: eight requests.

    Its answer is not remembered: it costs a fraction of a second against the minutes of a run, and a passed probe on
    file would outlive what it was about (a proxy put in between, versioning switched on in the bucket).

    Raises:
        UnsoundStore: Says which of its answers was not true.
        StoreUnreachable: It does not answer.
    """
    failed = [finding for finding in probe_required(store) if not finding.passed]
    if failed:
        raise UnsoundStore(
            f"{store.uri}: {' '.join(finding.sentence for finding in failed)}",
            expected="a store that keeps If-None-Match on PUT, lists what was written and reads ranges",
            next_command="retrain doctor shows all checks; README names the stores that were verified",
        )


def probe_required(store: ObjectStore) -> Iterator[Finding]:
    """Look at what the ledger rests on."""
    with _own_key(store) as key:
        yield _create_only(store, key)
        yield _listing(store, key)
        yield _ranges(store, key)


def probe_optional(store: ObjectStore) -> Iterator[Finding]:
    """Look at what is merely good to have."""
    with _own_key(store) as key:
        store.put(key, FIRST)
        yield from _refusals(store, key)
    gone = store.head(key) is None
    yield Finding(
        name="delete",
        passed=gone,
        required=False,
        sentence="What is deleted is gone." if gone else "An object is still there after it was deleted.",
    )


@contextmanager
def _own_key(store: ObjectStore) -> Iterator[str]:
    """A key that nobody else has, whose object is removed in the end."""
    key = f"{PROBES}{uuid.uuid4().hex}"
    try:
        yield key
    finally:
        try:
            store.delete(key)
        except StoreUnreachable as error:  # not what was asked: some may write and not delete
            logger.warning("%s is left in the store: %s", key, error.found)


def _create_only(store: ObjectStore, key: str) -> Finding:
    try:
        created, again = store.put_new(key, FIRST), store.put_new(key, SECOND)
    except ConditionUnsupported as error:
        store.put(key, FIRST)  # for the checks to come
        return Finding(name="create-only", passed=False, required=True, sentence=f"{error.found}.")
    if not created:
        sentence = "It did not create an object under a key that nobody had used."
    elif again:
        kept = "left the first one" if store.get(key) == FIRST else "overwrote the first one"
        sentence = f"It answered that it had created an object under a key that was taken, and {kept}."
    elif store.get(key) != FIRST:
        sentence = "It refused to create an object under a key that was taken, and overwrote it."
    else:
        return Finding(name="create-only", passed=True, required=True, sentence="A key that is taken is refused.")
    return Finding(name="create-only", passed=False, required=True, sentence=sentence)


def _listing(store: ObjectStore, key: str) -> Finding:
    listed = [found.key for found in store.list_objects(key)]
    told = "A list shows what was just written." if listed == [key] else "A list does not show what was just written."
    return Finding(name="list after write", passed=listed == [key], required=True, sentence=told)


def _ranges(store: ObjectStore, key: str) -> Finding:
    found = store.get(key, offset=3, length=4)
    right = found == FIRST[3:7]
    told = "A range of an object is that range." if right else f"Asked for bytes 3 to 6, it gave {found!r}."
    return Finding(name="ranges", passed=right, required=True, sentence=told)


def _refusals(store: ObjectStore, key: str) -> Iterator[Finding]:
    refused = store.try_bad_writes(key)
    content = store.get(key).decode()
    for name, said_no in refused.items():
        passed = said_no and content != name
        told = (
            f"A write with a {name} is refused." if passed else f"A write with a {name} is taken as if it were right."
        )
        yield Finding(name=name, passed=passed, required=False, sentence=told)
