"""Checkpoints: what was kept comes back or what was kept before it, whatever breaks and whenever the writer dies."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.contracts import Document
from components.core.errors import StoreUnreachable
from components.core.storage import DirectoryStore, ListedObject, ObjectInfo, ObjectStore
from components.train.checkpoint import (
    HEARTBEAT_SECONDS,
    Attempt,
    Checkpoints,
    Ending,
    NoCheckpoints,
    Progress,
    Snapshot,
    lost_seconds,
)
from tests import servers

PREFIX = "checkpoints/digits/abc"


@pytest.fixture(autouse=True)
def no_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the disk is a matter of the store's own tests; here it costs a minute."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def checkpoints(store: ObjectStore, clock: Callable[[], float] = Clock(), **more: Any) -> Checkpoints:  # noqa: B008
    return Checkpoints(store, "digits", "abc", 60.0, clock, **more)


def snapshot(step: int) -> Snapshot:
    """Tensors that all tell the step, so that a mixture would show."""
    tensors = {"network:w": torch.full((3, 2), float(step)), "optimizer:w/step": torch.tensor(float(step))}
    return Snapshot(tensors=tensors, progress=Progress(step=step, losses=(0.1 + step,)))


def step_of(found: Snapshot | None) -> int | None:
    """The step of a snapshot that is whole; None if there is none."""
    if found is None:
        return None
    expected = snapshot(found.progress.step)
    assert found.progress == expected.progress
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(value, expected.tensors[name]) for name, value in found.tensors.items())
    return found.progress.step


def names(store: ObjectStore) -> list[str]:
    return [entry.key.removeprefix(f"{PREFIX}/") for entry in store.list_objects(f"{PREFIX}/")]


def flip_a_bit(store: DirectoryStore, name: str, at: int = -1) -> None:
    data = bytearray(store.get(f"{PREFIX}/{name}"))
    data[at] ^= 1
    store.put(f"{PREFIX}/{name}", bytes(data))


def file_of(store: ObjectStore, step: int) -> str:
    (name,) = [name for name in names(store) if name.startswith(f"step-{step}-")]
    return name


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@servers.on("directory", "moto")
def test_a_snapshot_comes_back_as_it_was_also_in_another_process(store: ObjectStore) -> None:
    assert checkpoints(store).latest() is None
    tensors = {
        "a:half": torch.tensor([[1.5, -0.0], [float("inf"), 2.0]], dtype=torch.float16),
        "b:count": torch.tensor(7),
        "c:empty": torch.empty(0, 3),
        "d:bytes": torch.arange(256).to(torch.uint8),
        "e:last": torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }
    kept = Snapshot(tensors=tensors, progress=Progress(step=5, losses=(0.1 + 0.2, 1e-300), accuracies=(1 / 3,), best=0))
    checkpoints(store).save(kept, wait=True)
    found = checkpoints(store).latest()
    assert found is not None
    assert found.progress == kept.progress
    assert found.tensors.keys() == tensors.keys()
    for name, value in found.tensors.items():
        assert value.dtype == tensors[name].dtype
        assert torch.equal(value, tensors[name])


@servers.on("directory", "moto")
def test_two_generations_are_kept_and_older_ones_go(store: ObjectStore) -> None:
    keeper = checkpoints(store)
    for step in (1, 2, 3, 4):
        keeper.save(snapshot(step), wait=True)
    assert [name.partition("-")[2].partition("-")[0] for name in names(store) if name.startswith("step")] == ["3", "4"]
    assert step_of(checkpoints(store).latest()) == 4


@servers.on("directory", "moto")
def test_removing_leaves_nothing_of_this_training_and_all_of_another(store: ObjectStore) -> None:
    other = Checkpoints(store, "digits", "abcd", 60.0)
    for keeper in (other, checkpoints(store)):
        keeper.save(snapshot(1), wait=True)
        keeper.stage("start", lambda: {"w": torch.ones(2)})
    keeper.begin_attempt()
    keeper.remove()
    assert names(store) == []
    assert step_of(other.latest()) == 1
    keeper.remove()


def test_what_changes_after_saving_is_not_in_the_snapshot(directory: DirectoryStore) -> None:
    moving = snapshot(3)
    keeper = checkpoints(directory)
    keeper.save(moving)
    for tensor in moving.tensors.values():
        tensor.zero_()
    keeper.save(snapshot(4), wait=True)
    flip_a_bit(directory, file_of(directory, 4))
    assert step_of(checkpoints(directory).latest()) == 3


def test_saving_the_same_step_again_keeps_one_generation_of_it(directory: DirectoryStore) -> None:
    keeper = checkpoints(directory)
    for step in (1, 2, 2):
        keeper.save(snapshot(step), wait=True)
    flip_a_bit(directory, file_of(directory, 2))
    assert step_of(keeper.latest()) == 1


@pytest.mark.parametrize("damage", ["flipped", "gone", "short", "empty"])
def test_a_damaged_snapshot_costs_one_interval_and_says_so(
    directory: DirectoryStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = checkpoints(directory)
    for step in (1, 2):
        keeper.save(snapshot(step), wait=True)

    def hurt(step: int) -> None:
        key = f"{PREFIX}/{file_of(directory, step)}"
        if damage == "gone":
            directory.delete(key)
        elif damage == "flipped":
            flip_a_bit(directory, file_of(directory, step))
        else:
            directory.put(key, directory.get(key)[:20] if damage == "short" else b"")

    hurt(2)
    with caplog.at_level(logging.WARNING):
        assert step_of(checkpoints(directory).latest()) == 1
    assert "step-2" in caplog.text
    hurt(1)
    assert checkpoints(directory).latest() is None
    checkpoints(directory).save(snapshot(3), wait=True)
    assert step_of(checkpoints(directory).latest()) == 3


def test_every_flipped_bit_is_noticed(directory: DirectoryStore) -> None:
    checkpoints(directory).save(snapshot(1), wait=True)
    name = file_of(directory, 1)
    for at in range(len(directory.get(f"{PREFIX}/{name}"))):
        flip_a_bit(directory, name, at)
        assert checkpoints(directory).latest() is None
        flip_a_bit(directory, name, at)
    assert step_of(checkpoints(directory).latest()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"generations": [{"name": 3}]}', b"\xff\xfe"])
def test_a_damaged_list_begins_afresh_and_says_so(
    directory: DirectoryStore, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints(directory).save(snapshot(1), wait=True)
    directory.put(f"{PREFIX}/manifest.json", content)
    with caplog.at_level(logging.WARNING):
        assert checkpoints(directory).latest() is None
    assert "damaged" in caplog.text
    checkpoints(directory).save(snapshot(2), wait=True)
    assert step_of(checkpoints(directory).latest()) == 2


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Failing:
    """A store that does `allowed` changes and refuses all others, before or after having done them."""

    inner: DirectoryStore
    allowed: int
    error: BaseException = field(default_factory=Killed)
    done_nevertheless: bool = False
    changes: int = 0
    uri: str = "failing"

    def _change(self, change: Callable[[], None]) -> None:
        self.changes += 1
        if self.changes <= self.allowed:
            return change()
        if self.done_nevertheless and self.changes == self.allowed + 1:
            change()
        raise self.error

    def put(self, key: str, data: bytes) -> None:
        self._change(lambda: self.inner.put(key, data))

    def delete(self, key: str) -> None:
        self._change(lambda: self.inner.delete(key))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(key, offset=offset, length=length)

    def head(self, key: str) -> ObjectInfo | None:
        return self.inner.head(key)

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ListedObject]:
        return self.inner.list_objects(prefix, start_after=start_after)


def save_until_killed(store: Any, steps: range) -> int:
    """Save snapshots until the store gives out. Returns the last step that was surely kept."""
    keeper = checkpoints(store)
    kept = 0
    try:
        keeper.stage("start", lambda: {"w": torch.ones(2)})
        for step in steps:
            keeper.save(snapshot(step), wait=True)
            kept = step
    except Killed:
        pass
    return kept


@pytest.mark.parametrize("done_nevertheless", [False, True])
def test_a_writer_killed_at_any_change_leaves_a_whole_snapshot(tmp_path: Path, done_nevertheless: bool) -> None:
    counting = Failing(DirectoryStore(tmp_path / "count"), allowed=10**6)
    assert save_until_killed(counting, range(1, 5)) == 4
    assert counting.changes == 2 + 4 * 2 + 2  # a stage; a file and the list each; two old files that go
    for allowed in range(counting.changes):
        inner = DirectoryStore(tmp_path / f"store-{allowed}")
        kept = save_until_killed(Failing(inner, allowed, done_nevertheless=done_nevertheless), range(1, 5))
        found = step_of(checkpoints(inner).latest()) or 0
        assert found in (kept, kept + 1), allowed
        # Who comes after goes on as if nothing had been.
        start = checkpoints(inner).stage("start", lambda: {"w": torch.ones(2)})
        assert torch.equal(start["w"], torch.ones(2))
        assert save_until_killed(inner, range(found + 1, 8)) == 7
        assert step_of(checkpoints(inner).latest()) == 7
        checkpoints(inner).remove()
        assert names(inner) == []


def test_a_removal_that_is_cut_off_leaves_a_start_or_nothing(tmp_path: Path) -> None:
    for allowed in range(6):
        inner = DirectoryStore(tmp_path / f"store-{allowed}")
        save_until_killed(inner, range(1, 4))
        with pytest.raises(Killed) if allowed < 4 else pytest.MonkeyPatch.context():
            checkpoints(Failing(inner, allowed)).remove()
        assert step_of(checkpoints(inner).latest()) in (None, 2, 3)
        assert save_until_killed(inner, range(4, 6)) == 5


def test_a_store_that_does_not_answer_does_not_end_the_training(
    directory: DirectoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    gone = StoreUnreachable("no answer", expected="one", next_command="wait")
    checkpoints(directory).save(snapshot(1), wait=True)
    for allowed in range(2):
        keeper = checkpoints(Failing(directory, allowed, gone))
        keeper.begin_attempt()
        with caplog.at_level(logging.WARNING):
            keeper.save(snapshot(2))
            keeper.save(snapshot(3))
            keeper.save(snapshot(4), wait=True)
            keeper.end_attempt("finished", 4)
        assert "could not be kept" in caplog.text
        assert step_of(checkpoints(directory).latest()) == 1


def test_snapshots_are_kept_again_once_the_store_answers_again(directory: DirectoryStore) -> None:
    store = Failing(directory, 0, StoreUnreachable("no answer", expected="one", next_command="wait"))
    keeper = checkpoints(store)
    keeper.save(snapshot(1), wait=True)
    store.allowed = 10**6
    keeper.save(snapshot(2), wait=True)
    assert step_of(checkpoints(directory).latest()) == 2


def test_an_error_that_is_not_the_stores_is_not_hidden(directory: DirectoryStore) -> None:
    keeper = checkpoints(Failing(directory, 0, ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        keeper.save(snapshot(1), wait=True)


def test_a_stage_is_made_once(directory: DirectoryStore) -> None:
    made: list[str] = []

    def make() -> dict[str, Tensor]:
        made.append("again")
        return {"w": torch.arange(3.0), "none": torch.empty(0, 2)}

    for _ in range(3):
        assert torch.equal(checkpoints(directory).stage("start", make)["w"], torch.arange(3.0))
    assert len(made) == 1
    assert checkpoints(directory).has("start")
    assert not checkpoints(directory).has("other")
    assert checkpoints(directory).stage("nothing", dict) == {}


def test_a_damaged_stage_is_made_again_and_kept(directory: DirectoryStore) -> None:
    keeper = checkpoints(directory)
    keeper.stage("start", lambda: {"w": torch.zeros(2)})
    keeper.save(snapshot(1), wait=True)
    (name,) = [name for name in names(directory) if name.startswith("start-")]
    flip_a_bit(directory, name)
    assert float(keeper.stage("start", lambda: {"w": torch.ones(2)})["w"].sum()) == 2
    assert float(checkpoints(directory).stage("start", dict)["w"].sum()) == 2
    assert step_of(keeper.latest()) == 1


def test_who_does_not_write_reads_and_writes_nothing(directory: DirectoryStore) -> None:
    writer = checkpoints(directory)
    writer.save(snapshot(1), wait=True)
    before = names(directory)
    clock = Clock()
    reader = checkpoints(directory, clock, writer=False)
    assert step_of(reader.latest()) == 1
    assert float(reader.stage("start", lambda: {"w": torch.ones(2)})["w"].sum()) == 2
    reader.document("search", Note, lambda: Note(text="found"))
    reader.begin_attempt()
    clock.now += 61
    assert reader.due()
    reader.save(snapshot(2), wait=True)
    assert not reader.due()
    reader.beat(2)
    reader.end_attempt("finished")
    assert names(directory) == before


def test_forgetting_the_steps_keeps_the_stages(directory: DirectoryStore) -> None:
    keeper = checkpoints(directory)
    keeper.stage("start", lambda: {"w": torch.ones(2)})
    keeper.save(snapshot(1), wait=True)
    keeper.forget_steps()
    assert keeper.latest() is None
    assert keeper.has("start")


class Note(Document):
    text: str


def test_a_document_is_made_once(directory: DirectoryStore) -> None:
    assert checkpoints(directory).document("search", Note, lambda: Note(text="first")).text == "first"
    assert checkpoints(directory).document("search", Note, lambda: Note(text="second")).text == "first"


def test_a_snapshot_is_due_after_its_seconds(directory: DirectoryStore) -> None:
    clock = Clock()
    keeper = checkpoints(directory, clock)
    clock.now += 59
    assert not keeper.due()
    clock.now += 1
    assert keeper.due()
    keeper.save(snapshot(1), wait=True)
    assert not keeper.due()
    clock.now += 60
    assert keeper.due()


def test_writing_does_not_stop_the_steps(directory: DirectoryStore) -> None:
    # The store holds a write back until it is let go; saving returns before that.
    let_go = threading.Event()

    class Slow(DirectoryStore):
        def put(self, key: str, data: bytes) -> None:
            assert let_go.wait(10)
            super().put(key, data)

    keeper = checkpoints(Slow(directory.root))
    keeper.save(snapshot(1))
    assert keeper.latest() is None
    let_go.set()
    keeper.save(snapshot(2), wait=True)
    assert step_of(keeper.latest()) == 2


def test_attempts_tell_how_far_each_came(directory: DirectoryStore) -> None:
    clock = Clock()
    first = checkpoints(directory, clock)
    assert first.begin_attempt().number == 1
    clock.now += HEARTBEAT_SECONDS - 1
    first.beat(7)  # too early to be told
    assert checkpoints(directory).attempts()[0].step == 0
    clock.now += 1
    first.beat(8)
    first.save(snapshot(5), wait=True)

    second = checkpoints(directory, clock)
    begun = second.begin_attempt()
    assert (begun.number, begun.began_at_step, begun.step, begun.seconds, begun.ended) == (2, 5, 5, 0.0, None)
    clock.now += 3
    second.end_attempt("preempted", 6)

    told = [(a.number, a.began_at_step, a.step, a.seconds, a.ended) for a in checkpoints(directory).attempts()]
    assert told == [(1, 0, 8, HEARTBEAT_SECONDS, None), (2, 5, 6, 3.0, "preempted")]


def test_a_damaged_attempt_does_not_stop_the_next(directory: DirectoryStore, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        checkpoints(directory).begin_attempt()
    directory.put(f"{PREFIX}/attempts/0002.json", b"{")
    with caplog.at_level(logging.WARNING):
        assert checkpoints(directory).begin_attempt().number == 4
    assert "0002" in caplog.text
    assert [attempt.number for attempt in checkpoints(directory).attempts()] == [1, 3, 4]


def test_attempts_beat_only_after_they_began(directory: DirectoryStore) -> None:
    clock = Clock()
    keeper = checkpoints(directory, clock)
    clock.now += 1000
    keeper.beat(3)
    assert keeper.attempts() == []


def attempt(number: int, began: int, step: int, seconds: float, ended: Ending | None = None) -> Attempt:
    return Attempt(
        number=number, began_at_step=began, step=step, seconds=seconds, started=datetime.now(UTC), ended=ended
    )


@pytest.mark.parametrize(
    ("tries", "lost"),
    [
        ([], 0.0),
        ([(0, 10, 5.0)], 0.0),
        # 10 steps in 100 s, of which the last 4 had to be taken again.
        ([(0, 10, 100.0), (6, 20, 100.0)], 40.0),
        # The second began after the last heartbeat of the first: nothing is known to be lost.
        ([(0, 10, 100.0), (12, 20, 100.0)], 0.0),
        # All of the second is lost, and nothing of the first.
        ([(0, 5, 50.0), (5, 9, 80.0), (5, 30, 100.0)], 80.0),
        # Back before where it began, since a snapshot was damaged: not more than it took.
        ([(5, 9, 80.0), (0, 30, 100.0)], 80.0),
        # Died before its first step.
        ([(5, 5, 30.0), (5, 9, 10.0)], 0.0),
    ],
)
def test_lost_seconds_by_hand(tries: list[tuple[int, int, float]], lost: float) -> None:
    assert lost_seconds([attempt(n, *values) for n, values in enumerate(tries, 1)]) == pytest.approx(lost)


def test_keeping_nothing_is_a_keeper_too() -> None:
    nothing = NoCheckpoints()
    nothing.save(snapshot(1), wait=True)
    nothing.beat(1)
    assert nothing.latest() is None
    assert not nothing.due()
    assert nothing.stage("start", lambda: {"w": torch.ones(1)}) == {"w": torch.ones(1)}


def test_removing_is_safe_to_be_cut_off_and_a_damaged_result_is_no_result(tmp_path: Path) -> None:
    kept = checkpoints(DirectoryStore(tmp_path))
    kept.stage("finished", lambda: {"weight": torch.ones(3)})
    assert kept.has("finished")
    (file,) = (tmp_path / PREFIX).glob("finished-*.safetensors")
    file.write_bytes(b"damaged")
    assert not kept.has("finished")

    deleted: list[str] = []

    class Noting(DirectoryStore):
        def delete(self, key: str) -> None:
            deleted.append(key)
            super().delete(key)

    checkpoints(Noting(tmp_path)).remove()
    assert deleted[0] == f"{PREFIX}/manifest.json"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
