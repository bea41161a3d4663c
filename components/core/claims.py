"""Which deliveries runs have taken: an append-only log a model, `claims/<model>/<n>.json`, that several may write.

An entry is created under the number that follows the last one that its writer has read, so it is written with knowledge
of all before it, or not at all: no delivery is taken twice, one claim is open at a time, and of two that take over a
stale one, one does. A run enters its id as well as whoever started it: where two runs were started for one claim, the
first to do so goes on and the other stops. Clocks decide none of this; they only tell how long something has waited.

Not covered: when to take something (`pipelines.trigger.watcher`), and starting runs (`pipelines.trigger.service`).
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from components.core.contracts import Document, RunArguments
from components.core.errors import IntegrityError
from components.core.storage import KeyMissing, ObjectStore, to_json

BATCH, NEW = "batch:", "new"  # sources: what the claim of this number took; what no claim has taken yet
NUMBERED = re.compile(r"(\d{10})\.json")
READERS = 16  # requests in flight: an entry is nearly all latency
Result = Literal["succeeded", "failed", "refused", "abandoned"]
"""`succeeded`: the run ended, whatever it decided. `failed`: it crashed, or was terminated, lost or deleted, and is to
be started again. `refused`: what was delivered cannot be read, which another try would not change. `abandoned`: a
person said that nothing more is to be tried."""


class _Entry(Document):
    """What all entries have: who wrote it, and a nonce, so that no two are equal; number and time are the log's."""

    number: int = -1
    nonce: str = Field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = datetime.min.replace(tzinfo=UTC)
    actor: str


class Request(_Entry):
    """Somebody asked for a run on `arguments.source`; with `again` although a run has taken it before."""

    kind: Literal["request"] = "request"
    arguments: RunArguments
    again: bool = False


class Claim(_Entry):
    """Deliveries are taken, to become one window. The writer is about to start the run, or is the run `run_id`."""

    kind: Literal["claim"] = "claim"
    deliveries: tuple[str, ...]
    arguments: RunArguments
    run_id: str | None = None


class Attempt(_Entry):
    """The writer is about to start the run of a claim: again after one that failed, or in place of a writer that does
    not."""

    kind: Literal["attempt"] = "attempt"
    claim: int
    attempt: int


class Started(_Entry):
    """The run of a claim's present attempt, entered by the run itself or by who started it, whoever is first."""

    kind: Literal["started"] = "started"
    claim: int
    run_id: str


class Ended(_Entry):
    """How that run ended, and why if not well; without a run where the engine would not start one."""

    kind: Literal["ended"] = "ended"
    claim: int
    run_id: str | None
    result: Result
    reason: str = ""


Entry = Annotated[Request | Claim | Attempt | Started | Ended, Field(discriminator="kind")]
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


@dataclass(frozen=True, kw_only=True)
class OpenClaim:
    """The claim whose run has not ended well yet.

    `nonce` is the claim's own: numbers begin anew in another store, whose runs the same engine may have.
    `holder` is who was about to start the run of its last attempt, `since` when. `run_id` is None while no run of this
    attempt is known; after one that `failed`, another attempt is due.
    """

    number: int
    nonce: str
    deliveries: tuple[str, ...]
    arguments: RunArguments
    attempt: int
    holder: str
    since: datetime
    run_id: str | None = None
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ClosedClaim:
    """A claim that is done with, and its last run."""

    number: int
    deliveries: tuple[str, ...]
    run_id: str | None
    result: Result
    reason: str


@dataclass(kw_only=True)
class ClaimState:
    """What a log says; grows with each entry.

    Attributes:
        entries: How many there are; the next one has this number.
        requests: Those that no claim has taken, oldest first.
        alone: Deliveries that get a window of their own: one of those they came with was refused.
        taken: The claim of each delivery that was taken.
        open: The claim under way.
        closed: The others, by number.
        run_claims: The claim of each run.
        failures: Runs that failed since the last one that ended well, or since a person gave a claim up; the last one
            `failed_at`. What was refused is the delivery's fault, not the system's.
        ended_at: When the last run ended, whichever way.
        counts: Runs that ended, by result.
    """

    entries: int = 0
    requests: tuple[Request, ...] = ()
    alone: set[str] = field(default_factory=set)
    taken: dict[str, int] = field(default_factory=dict)
    open: OpenClaim | None = None
    closed: dict[int, ClosedClaim] = field(default_factory=dict)
    run_claims: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    failed_at: datetime | None = None
    ended_at: datetime | None = None
    counts: Counter[Result] = field(default_factory=Counter)

    def deliveries_of(self, claim: int) -> tuple[str, ...] | None:
        """What a claim took; None where there is no such claim."""
        if self.open is not None and self.open.number == claim:
            return self.open.deliveries
        return self.closed[claim].deliveries if claim in self.closed else None

    def next_batch(self, complete: Iterable[str]) -> tuple[str, ...]:
        """Those of the complete deliveries that would go into one window next, in order of name."""
        untaken = sorted({uri for uri in complete if uri not in self.taken})
        alone = tuple(uri for uri in untaken if uri in self.alone)
        return alone[:1] or tuple(untaken)

    def follows(self, entry: Entry) -> bool:
        """Whether an entry may come next."""
        claim = self.open
        match entry:
            case Request():
                right = entry.again or entry.arguments.source not in self.taken
            case Claim():
                right = claim is None and not any(uri in self.taken for uri in entry.deliveries)
            case Attempt():
                idle = claim if claim and claim.run_id is None else None
                right = idle is not None and (entry.claim, entry.attempt) == (idle.number, idle.attempt + idle.failed)
            case Started():
                right = claim is not None and (entry.claim, None) == (claim.number, claim.run_id)
            case Ended():
                right = claim is not None and (entry.claim, entry.run_id) == (claim.number, claim.run_id)
        return right and entry.number == self.entries

    def add(self, entry: Entry) -> None:
        """Take in one more entry, which must follow."""
        self.entries += 1
        match entry:
            case Request():
                self.taken.pop(entry.arguments.source, None)
                self.requests = (*self.requests, entry)
            case Claim():
                self._claim(entry)
            case Attempt():
                self._change(attempt=entry.attempt, holder=entry.actor, since=entry.created, failed=False)
            case Started():
                self._start(entry.run_id)
            case Ended():
                self._end(entry)

    def _claim(self, entry: Claim) -> None:
        self.taken |= dict.fromkeys(entry.deliveries, entry.number)
        self.requests = tuple(r for r in self.requests if r.arguments.source not in entry.deliveries)
        self.open = OpenClaim(
            number=entry.number,
            nonce=entry.nonce,
            deliveries=entry.deliveries,
            arguments=entry.arguments,
            attempt=1,
            holder=entry.actor,
            since=entry.created,
        )
        if entry.run_id:
            self._start(entry.run_id)

    def _start(self, run_id: str) -> None:
        self._change(run_id=run_id, failed=False)
        assert self.open is not None
        self.run_claims[run_id] = self.open.number

    def _end(self, entry: Ended) -> None:
        claim = self.open
        assert claim is not None, "see follows"
        self.ended_at = entry.created
        self.counts[entry.result] += 1
        if entry.result in ("succeeded", "abandoned"):
            self.failures = 0
        if entry.result == "failed":
            self.failures, self.failed_at = self.failures + 1, entry.created
            self._change(run_id=None, failed=True, reason=entry.reason)
            return
        self.open = None
        self.closed[claim.number] = ClosedClaim(
            number=claim.number,
            deliveries=claim.deliveries,
            run_id=entry.run_id,
            result=entry.result,
            reason=entry.reason,
        )
        self.alone -= set(claim.deliveries)
        if entry.result == "refused" and len(claim.deliveries) > 1:  # which of them it was shows when each is alone
            self.alone |= set(claim.deliveries)
            for uri in claim.deliveries:
                del self.taken[uri]

    def _change(self, **values: object) -> None:
        assert self.open is not None, "see follows"
        self.open = replace(self.open, **values)  # type: ignore[arg-type]


class ClaimLog:
    """The log of one model in a store. Keeps what it has read: each entry is read once."""

    def __init__(
        self, store: ObjectStore, model: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """
        Args:
            store: Where the log is.
            model: Whose.
            clock: The time that entries get.
        """
        self.store, self.model = store, model
        self._clock = clock
        self._state = ClaimState()

    def read(self) -> ClaimState:
        """What the log says now.

        Raises:
            IntegrityError: It is not what was written.
        """
        state = self._state
        after = self._key(state.entries - 1) if state.entries else ""
        keys = [listed.key for listed in self.store.list_objects(self._folder, start_after=after)]
        if numbered := [int(match[1]) for key in keys if (match := NUMBERED.fullmatch(key, len(self._folder)))]:
            numbers = range(state.entries, numbered[-1] + 1)
            with ThreadPoolExecutor(READERS) as pool:
                for entry in pool.map(self._entry, numbers):
                    if not state.follows(entry):
                        raise self._broken(entry.number, "does not follow from those before it")
                    state.add(entry)
        return state

    def enter(self, make: Callable[[ClaimState], Entry | None]) -> Entry | None:
        """Write the next entry, as it follows from what the log says.

        Args:
            make: The entry for a state, or None for none; asked again whenever somebody else was faster.

        Returns:
            What was written, or None.
        """
        while True:
            state = self.read()
            entry = make(state)
            if entry is None:
                return None
            entry = entry.model_copy(update={"number": state.entries, "created": self._clock()})
            assert state.follows(entry), f"{entry.kind} does not follow from the state that it was made for"
            if self.store.put_new(self._key(entry.number), to_json(entry)):
                state.add(entry)
                return entry

    def _entry(self, number: int) -> Entry:
        try:
            return ENTRY.validate_json(self.store.get(self._key(number)), extra="ignore")
        except ValidationError as error:
            raise self._broken(number, f"is no entry: {error}") from error
        except KeyMissing as error:
            raise self._broken(number, "is missing") from error

    @property
    def state(self) -> ClaimState:
        """What it said when it was read last."""
        return self._state

    @property
    def _folder(self) -> str:
        return f"claims/{self.model}/"

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:010d}.json"

    def _broken(self, number: int, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self.store.uri}/{self._key(number)} {what}",
            expected="entries as they were written, without a gap",
            next_command=f"restore {self._folder} from a backup of the store",
        )
