"""The trigger under all that can happen to it, in any order: a state machine that looks for the order that breaks it.

Deliveries arrive out of order, in parts, twice; two replicas die before or after any write and any call of the engine,
and run into each other between any two; the engine loses requests and answers; runs crash, are deleted, turn out to be
one too many, and find a delivery that cannot be read; clocks jump by an hour. What must hold all along: no delivery is
learnt twice, one run is at work at a time, nothing half-uploaded is taken. And once it all calms down: every complete
delivery has been in exactly one run that ended well (or was refused alone, if it is bad), and one that arrives then is
taken within `max_wait_minutes`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from components.core.claims import ClaimLog
from components.core.config import Config, StoreConfig, TriggerConfig
from components.core.contracts import Failure, RunArguments
from components.core.errors import ConfigurationError
from components.core.run_claims import claim_number, end_claim, join_claim, take_new
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore
from components.ingest.deliveries import Upload
from pipelines.trigger.launcher import LauncherUnavailable, RunState
from pipelines.trigger.service import Trigger
from pipelines.trigger.watcher import Moment

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = TriggerConfig(
    source="s3://incoming",
    quiet_minutes=2,
    min_images=10,
    max_wait_minutes=5,
    cool_down_minutes=1,
    max_failures=3,
    pause_minutes=10,
    poll_seconds=30,
    lease_seconds=60,
)
MEMORY = Path("/dev/shm")
# What may happen when a replica writes or asks the engine.
FAULTS = (
    "nothing",
    "die before",
    "die after",
    "another acts",
    "it takes long",
    "runs begin",
    "no answer",
    "answer lost",
)
Plan = list[str]


class Died(BaseException):
    """The replica is gone. No `except Exception` survives that."""


@dataclass
class Delivery:
    """What lies at the source. `changed` in true seconds."""

    images: int
    changed: float
    marked: bool = False
    bad: bool = False


@dataclass
class EngineRun:
    """A run of the engine. `deliveries` once it has joined its claim."""

    name: str
    source: str
    state: RunState = "running"
    deliveries: tuple[str, ...] | None = None

    @property
    def at_work(self) -> bool:
        return self.state == "running" and self.deliveries is not None


@dataclass
class World:
    """Everything outside the trigger. Time is in seconds, true."""

    root: Path
    seconds: float = 0.0
    source: dict[str, Delivery] = field(default_factory=dict)
    runs: dict[str, EngineRun] = field(default_factory=dict)
    successes: Counter[str] = field(default_factory=Counter)

    @property
    def log(self) -> ClaimLog:
        return ClaimLog(DirectoryStore(self.root), "m", lambda: START + timedelta(seconds=self.seconds))

    def complete(self, name: str) -> bool:
        delivery = self.source[name]
        return delivery.marked or self.seconds - delivery.changed >= 60 * POLICY.quiet_minutes  # type: ignore[operator]

    def uploads(self) -> list[Upload]:
        """As a listing shows them, each twice: some stores list a key again on the next page."""
        return [
            Upload(
                uri=name,
                marked=delivery.marked,
                images=delivery.images,
                newest=START + timedelta(seconds=delivery.changed),
                fingerprint=f"{delivery.images} at {delivery.changed}",
            )
            for name, delivery in self.source.items()
            for _ in range(2)
        ]

    def go_on_for(self, seconds: float) -> None:
        """Time passes, and in the middle of it more arrives of what is not complete."""
        growing = [delivery for name, delivery in self.source.items() if not self.complete(name)]
        self.seconds += seconds
        for delivery in growing:
            delivery.images, delivery.changed = delivery.images + 1, self.seconds - seconds / 2

    def begin(self) -> None:
        """Every run that waits for its first pod gets it."""
        for run_id, run in self.runs.items():
            if run.state == "running" and run.deliveries is None:
                self._join(run_id, run)

    def _join(self, run_id: str, run: EngineRun) -> None:
        number = claim_number(run.source)
        try:
            if number is None:
                run.deliveries = take_new(self.log, self._complete, run_id, RunArguments(source="new"))
            else:
                run.deliveries = join_claim(self.log, number, run_id)
        except ConfigurationError:
            run.state = "failed"

    def _complete(self, taken: Container[str]) -> list[str]:
        return [name for name in self.source if self.complete(name)]

    def finish(self, run_id: str, how: str) -> None:
        """A run at work ends: well, in a crash that it tells or not, or because somebody deletes it."""
        run, record = self.runs[run_id], Run(DirectoryStore(self.root), run_id)
        assert run.deliveries is not None
        if how == "deleted":
            run.state = "gone"
        elif how in ("crashed", "crashed untold"):
            if how == "crashed":
                end_claim(self.log, record, succeeded=False)
            run.state = "failed"
        elif any(self.source[name].bad for name in run.deliveries):
            why = Failure(step="ingest", error="SourceError", message="no image", exit_code=2)
            record.replace(StepRecord(step="failure-ingest", started=START, seconds=0.0, document=why))
            if how == "told":
                end_claim(self.log, record, succeeded=False)
            run.state = "failed"
        else:
            self.successes.update(run.deliveries)
            if how == "told":
                end_claim(self.log, record, succeeded=True)
            run.state = "succeeded"


class Replica:
    """One process of the trigger, with a clock of its own, and faults that strike it at its n-th step."""

    def __init__(self, world: World, others: Callable[[], None]) -> None:
        self.world, self.others = world, others
        self.skew = 0.0
        self.plan: Plan = []
        store = _Store(world.root, self)
        config = Config(model="m", store=StoreConfig(uri=str(world.root)), trigger=POLICY)
        self.trigger = Trigger(config, store, self, lambda state: world.uploads(), self.now)

    def now(self) -> Moment:
        return Moment(calendar=START + timedelta(seconds=self.world.seconds + self.skew), seconds=self.world.seconds)

    def tick(self, plan: Plan) -> None:
        """One tick, at whose steps the faults of the plan strike, one a step."""
        self.plan = list(plan)
        try:
            self.trigger.tick()
        except LauncherUnavailable:
            pass
        finally:
            self.plan = []

    def step(self, act: Callable[[], Any], *, asks: bool = False) -> Any:
        """Do one thing that others can see."""
        fault = self.plan.pop(0) if self.plan else "nothing"
        if fault == "die before":
            raise Died
        if fault == "it takes long":
            self.world.go_on_for(POLICY.lease_seconds + 1)
        if fault in ("another acts", "it takes long"):
            self.others()
        if fault == "runs begin":
            self.world.begin()
        if asks and fault == "no answer":
            raise LauncherUnavailable
        done = act()
        if fault == "die after":
            raise Died
        if asks and fault == "answer lost":
            raise LauncherUnavailable
        return done

    # What a launcher is asked.

    def find(self, name: str) -> str | None:
        def look() -> str | None:
            return next((run_id for run_id, run in self.world.runs.items() if run.name == name), None)

        return self.step(look, asks=True)  # type: ignore[no-any-return]

    def start(self, name: str, arguments: RunArguments) -> str:
        def make() -> str:
            run_id = f"run-{len(self.world.runs)}"
            self.world.runs[run_id] = EngineRun(name=name, source=arguments.source)
            return run_id

        return self.step(make, asks=True)  # type: ignore[no-any-return]

    def state(self, run_id: str) -> RunState:
        return self.step(lambda: self.world.runs[run_id].state, asks=True)  # type: ignore[no-any-return]


class _Store(DirectoryStore):
    def __init__(self, root: Path, replica: Replica) -> None:
        super().__init__(root)
        self.replica = replica

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self.replica.step(lambda: super(_Store, self).put_new(key, data)))


plans = st.lists(st.sampled_from(FAULTS), min_size=1, max_size=8)
sizes = st.integers(1, 12)
hours = st.sampled_from((-3600.0, 3600.0))


class TriggerMachine(RuleBasedStateMachine):
    """See the module."""

    @initialize()
    def begin(self) -> None:
        self.world = World(root=Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)))
        self.replicas = [self._replica(number) for number in range(2)]
        self.taken: set[str] = set()

    def _replica(self, number: int) -> Replica:
        return Replica(self.world, lambda: self._tick(1 - number, []))

    def _tick(self, number: int, plan: Plan) -> None:
        skew = self.replicas[number].skew
        try:
            self.replicas[number].tick(plan)
        except Died:
            self.replicas[number] = self._replica(number)
            self.replicas[number].skew = skew

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            calm_down(self)
        finally:
            shutil.rmtree(self.world.root)

    # What arrives.

    @rule(
        number=st.integers(0, 9), images=sizes, marked=st.booleans(), bad=st.sampled_from((False, False, False, True))
    )
    def deliver(self, number: int, images: int, marked: bool, bad: bool) -> None:
        name = f"d{number:02d}"
        if name not in self.world.source:
            self.world.source[name] = Delivery(images=images, changed=self.world.seconds, marked=marked, bad=bad)

    @rule(data=st.data(), images=sizes)
    def more_arrives(self, data: st.DataObject, images: int) -> None:
        coming = [d for name, d in self.world.source.items() if not self.world.complete(name)]
        if coming:
            delivery = data.draw(st.sampled_from(coming))
            delivery.images, delivery.changed = delivery.images + images, self.world.seconds

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        if coming := [d for d in self.world.source.values() if not d.marked]:
            data.draw(st.sampled_from(coming)).marked = True

    # What the trigger does.

    @rule(number=st.integers(0, 1))
    def tick(self, number: int) -> None:
        self._tick(number, [])

    @rule(number=st.integers(0, 1), plan=plans)
    def tick_with_faults(self, number: int, plan: Plan) -> None:
        self._tick(number, plan)

    @rule(number=st.integers(0, 1), plan=plans)
    def tick_with_faults_when_something_is_due(self, number: int, plan: Plan) -> None:
        self.deliver(number=len(self.world.source), images=12, marked=True, bad=False)
        self.world.seconds += 61.0
        self._tick(number, plan)

    @rule(seconds=st.sampled_from((1.0, 30.0, 61.0, 121.0, 301.0, 3600.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.seconds += seconds

    @rule(number=st.integers(0, 1), hour=hours)
    def clock_jumps(self, number: int, hour: float) -> None:
        self.replicas[number].skew = hour

    # What the engine and people do.

    @rule()
    def runs_begin(self) -> None:
        self.world.begin()

    @rule(seconds=st.sampled_from((0.0, 61.0)))
    def both_run_into_each_other(self, seconds: float) -> None:
        """The nearest miss there is: one is about to start a run when the other takes over, and both runs begin."""
        self.world.seconds += 400.0
        self._tick(0, ["nothing", "nothing", "it takes long" if seconds else "another acts"])
        self.world.begin()

    @rule()
    def a_person_starts_a_run_on_what_is_new(self) -> None:
        run_id = f"run-{len(self.world.runs)}"
        self.world.runs[run_id] = EngineRun(name="by hand", source="new")

    @precondition(lambda self: any(run.at_work for run in self.world.runs.values()))
    @rule(how=st.sampled_from(("told", "told", "untold", "crashed", "crashed untold", "deleted")))
    def a_run_ends(self, how: str) -> None:
        run_id = next(run_id for run_id, run in self.world.runs.items() if run.at_work)
        self.world.finish(run_id, how)

    # What must hold.

    @invariant()
    def nothing_is_learnt_twice(self) -> None:
        twice = {name: count for name, count in self.world.successes.items() if count > 1}
        assert not twice

    @invariant()
    def one_run_is_at_work(self) -> None:
        at_work = [run for run in self.world.runs.values() if run.at_work and run.deliveries]
        assert len(at_work) <= 1

    @invariant()
    def nothing_incomplete_is_taken(self) -> None:
        taken = set(self.world.log.read().taken)
        assert all(self.world.complete(name) for name in taken - self.taken)
        self.taken = taken


def calm_down(machine: TriggerMachine) -> None:
    """No more faults: all that is complete must get its run, and what comes then must be taken in time."""
    world = machine.world
    for number in range(2):
        machine.clock_jumps(number, 3600.0 if number else -3600.0)
    for _ in range(500):
        if not _owed(world):
            break
        _live(machine, 30.0)
    assert not _owed(world), "something was lost"
    for name, delivery in world.source.items():
        machine.nothing_is_learnt_twice()
        assert world.successes[name] == (0 if delivery.bad else int(world.complete(name)))
    _is_taken_in_time(machine)


def _owed(world: World) -> bool:
    state = world.log.read()
    done = {
        name for claim in state.closed.values() for name in claim.deliveries if state.taken.get(name) == claim.number
    }
    return state.open is not None or not all(name in done for name in world.source if world.complete(name))


def _live(machine: TriggerMachine, seconds: float) -> None:
    """Time passes as it should."""
    world = machine.world
    world.seconds += seconds
    for number in range(2):
        machine._tick(number, [])
    world.begin()
    for run_id, run in world.runs.items():
        if run.at_work:
            world.finish(run_id, "told")
    machine.one_run_is_at_work()
    machine.nothing_incomplete_is_taken()


def _is_taken_in_time(machine: TriggerMachine) -> None:
    world = machine.world
    began = world.seconds
    world.source["last"] = Delivery(images=1, changed=began, marked=True)
    ended = world.log.read()
    pause = 24 * 3600.0 if ended.failures >= POLICY.max_failures else 0.0
    while "last" not in world.log.read().taken:
        _live(machine, 30.0)
        if world.seconds - began == 120.0:
            for replica in machine.replicas:
                replica.skew = -replica.skew
        assert world.seconds - began <= max(60 * POLICY.max_wait_minutes, pause) + POLICY.poll_seconds


TestTrigger = TriggerMachine.TestCase
TestTrigger.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
