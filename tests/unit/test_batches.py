"""Which rows a step takes: each once an epoch, wherever one begins; and that prefetching fails and ends well."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from components.train.batches import AHEAD, Schedule, prefetch

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SECONDS = 5.0  # nothing here should take a tenth of it


def schedule(rows: int = 20, step_rows: int = 6, epochs: int = 3, seed: int = 0, **more: np.ndarray) -> Schedule:
    return Schedule(rows=rows, step_rows=step_rows, epochs=epochs, seed=seed, **more)


def taken(plan: Schedule, first: int = 0) -> list[tuple[int, list[int]]]:
    return [(step, index.tolist()) for step, index in plan.from_step(first)]


@pytest.mark.parametrize("rows", [2, 3, 7, 12, 13, 31])
@pytest.mark.parametrize("step_rows", [1, 2, 6, 100])
def test_every_row_comes_once_an_epoch_in_steps_of_at_least_two(rows: int, step_rows: int) -> None:
    plan = schedule(rows, step_rows, epochs=2)
    steps = taken(plan)
    assert [number for number, _ in steps] == list(range(plan.steps))
    for epoch in range(2):
        of_epoch = steps[epoch * plan.steps_an_epoch : (epoch + 1) * plan.steps_an_epoch]
        assert sorted(row for _, index in of_epoch for row in index) == list(range(rows))
    sizes = [len(index) for _, index in steps]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(step_rows + 1, 3)


def test_steps_by_hand() -> None:
    plan = schedule(rows=20, step_rows=6, epochs=3)
    assert (plan.steps_an_epoch, plan.steps) == (4, 12)
    assert [len(index) for _, index in taken(plan)] == [5] * 12
    assert [step for step in range(12) if plan.ends_epoch(step)] == [3, 7, 11]


@pytest.mark.parametrize("weighted", [False, True])
def test_beginning_at_any_step_gives_what_would_have_come(weighted: bool) -> None:
    plan = schedule(rows=11, step_rows=3, weights=np.arange(1.0, 12.0)) if weighted else schedule(rows=11, step_rows=3)
    whole = taken(plan)
    for first in range(plan.steps + 1):
        assert taken(plan, first) == whole[first:]


def test_the_order_is_another_in_each_epoch_and_with_each_seed_and_comes_again() -> None:
    plan = schedule(rows=50)
    assert torch.equal(plan.order(1), schedule(rows=50).order(1))
    assert not torch.equal(plan.order(0), plan.order(1))
    assert not torch.equal(plan.order(0), schedule(rows=50, seed=1).order(0))


def test_a_row_may_come_first_or_last_with_the_same_chance() -> None:
    places = torch.stack([schedule(rows=5, seed=seed).order(0).argsort() for seed in range(2_000)])
    counts = torch.stack([torch.bincount(places[:, row], minlength=5) for row in range(5)]).double()
    assert float(((counts - 400) ** 2 / 400).sum()) < 39.3  # 0.999 of chi-square with 16 degrees of freedom


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    plan = schedule(rows=4, epochs=5_000, weights=weights)
    drawn = torch.cat([plan.order(epoch) for epoch in range(5_000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert float(shares[0]) == 0
    assert shares[1:].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)


class Lazy:
    """Rows that are gathered by a thread; they remember when, and may be told to fail."""

    device = CPU

    def __init__(self, values: Tensor, fail_at: int | None = None, seconds: float = 0.0) -> None:
        self.values, self.fail_at, self.seconds, self.asked = values, fail_at, seconds, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if self.asked == self.fail_at:
            raise OSError("the disk is gone")
        self.asked += 1
        time.sleep(self.seconds)
        return self.values[index]


def gatherers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert gatherers() == []


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_arrive_in_order_with_their_steps(lazy: bool) -> None:
    values = torch.arange(20.0) * 10
    plan = schedule()
    gathered = list(prefetch(Lazy(values) if lazy else values, plan.from_step(5), CPU))
    assert [item.step for item in gathered] == list(range(5, 12))
    for item, (_, index) in zip(gathered, plan.from_step(5), strict=True):
        assert torch.equal(item.index, index)
        assert torch.equal(item.rows, values[index])


def test_only_a_few_batches_are_gathered_ahead() -> None:
    rows = Lazy(torch.arange(200.0))
    batches = prefetch(rows, schedule(rows=200, step_rows=2, epochs=1).from_step(0), CPU)
    next(batches)
    time.sleep(0.3)
    assert 2 <= rows.asked <= 1 + AHEAD + 1  # one taken, the queue, and one in the thread's hands
    batches.close()


def test_an_error_while_gathering_is_raised_where_the_rows_are_wanted_after_those_before_it() -> None:
    batches = prefetch(Lazy(torch.arange(20.0), fail_at=2), schedule().from_step(0), CPU)
    got = [next(batches).step, next(batches).step]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert got == [0, 1]
    with pytest.raises(StopIteration):
        next(batches)


def test_an_error_in_the_steps_is_raised_too() -> None:
    def steps() -> Iterator[tuple[int, Tensor]]:
        yield 0, torch.tensor([0, 1])
        raise RuntimeError("no more")

    batches = prefetch(Lazy(torch.arange(20.0)), steps(), CPU)
    assert next(batches).step == 0
    with pytest.raises(RuntimeError, match="no more"):
        next(batches)


@pytest.mark.parametrize("taken_before", [0, 1, 5])
def test_closing_early_ends_the_thread_soon(taken_before: int) -> None:
    rows = Lazy(torch.arange(1000.0))
    batches = prefetch(rows, schedule(rows=1000, step_rows=2).from_step(0), CPU)
    for _ in range(taken_before):
        next(batches)
    time.sleep(0.05)  # the queue is full now, and the thread waits to put one more
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < SECONDS
    assert gatherers() == []


def test_closing_after_an_error_that_nobody_has_seen_ends_the_thread() -> None:
    batches = prefetch(Lazy(torch.arange(20.0), fail_at=1), schedule().from_step(0), CPU)
    next(batches)
    time.sleep(0.05)
    batches.close()
    assert gatherers() == []


def test_gathering_goes_on_while_the_rows_are_used() -> None:
    # 12 steps of 30 ms to gather and 30 ms to use: 720 ms one after the other, 390 side by side.
    started = time.monotonic()
    for _ in prefetch(Lazy(torch.arange(20.0), seconds=0.03), schedule().from_step(0), CPU):
        time.sleep(0.03)
    assert time.monotonic() - started < 0.62


def test_no_steps_give_no_batches() -> None:
    assert list(prefetch(Lazy(torch.arange(20.0)), schedule().from_step(12), CPU)) == []
