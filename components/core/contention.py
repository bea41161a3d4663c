"""Whether create-only holds while many write at once, which no probe can see that asks one after the other.

Swift, for one, is right in every serial test and lets up to twelve of 50 writers win. Writers are threads of this
process, each with a connection of its own; not covered: writers on several machines, which a directory on a network
file system would need.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from components.core.config import StoreConfig
from components.core.errors import StoreUnreachable
from components.core.probe import PROBES, Finding
from components.core.storage import KeyMissing, ObjectStore, open_store

WRITERS = 50
ROUNDS = 10
SECONDS = 60.0  # no round begins after that


def race_store(config: StoreConfig, *, writers: int = WRITERS, rounds: int = ROUNDS) -> Finding:
    """Let writers create one object at once, round after round, and compare what they were told with what is there.

    It leaves nothing behind. Bounded: a request gets two tries of ten seconds, and no round begins after `SECONDS`.

    Returns:
        Passed when in each round exactly one was told that it won, and its object is there; one that got no answer
        counts for neither.

    Raises:
        StoreUnreachable: It does not answer when asked what is there.
    """
    bounded = config.model_copy(update={"max_attempts": 2, "read_timeout_seconds": 10.0})
    stores = [open_store(bounded) for _ in range(writers)]  # one after the other: boto3 makes clients in no other way
    prefix, began, faults, done = f"{PROBES}{uuid.uuid4().hex}", time.monotonic(), list[str](), 0
    with ThreadPoolExecutor(writers) as pool:
        while done < rounds and time.monotonic() - began < SECONDS:
            done += 1
            key = f"{prefix}-{done}"
            try:
                fault = judge_round(_race(pool, stores, key), _holder(stores[0], key))
            finally:
                stores[0].delete(key)
            faults += [f"Round {done}: {fault}"] if fault else []
    seconds = time.monotonic() - began
    found = f"{len(faults)} went wrong. {faults[0]}" if faults else "one winner in each."
    told = f"{writers} writers, {done} rounds, {seconds:.1f} s: {found}"
    return Finding(name="race", passed=not faults, required=True, sentence=told)


def judge_round(told: Sequence[bool | None], holder: int | None) -> str | None:
    """Say what is wrong with a round, or None.

    Args:
        told: What each writer was told: won, lost, or nothing (None).
        holder: Whose object is there.
    """
    winners = [number for number, won in enumerate(told) if won]
    if len(winners) > 1:
        return f"{len(winners)} writers were told that they won."
    if holder is None:
        return "nothing is there." if winners or None not in told else None
    if winners and winners != [holder]:
        return "one was told that it won, and the object is another's."
    if told[holder] is False:
        return "one was told that it lost, and the object is its own."
    return None


def _race(pool: ThreadPoolExecutor, stores: Sequence[ObjectStore], key: str) -> list[bool | None]:
    barrier = threading.Barrier(len(stores))

    def create(number: int) -> bool | None:
        barrier.wait()
        try:
            return stores[number].put_new(key, str(number).encode())
        except StoreUnreachable:
            return None

    return list(pool.map(create, range(len(stores))))


def _holder(store: ObjectStore, key: str) -> int | None:
    try:
        return int(store.get(key))
    except KeyMissing:
        return None
