"""Worker processes: order, crashes at any moment, and what is left behind."""

import multiprocessing
import os
import time
from collections.abc import Iterator

import pytest

from components.core.errors import SourceError
from components.ingest.processes import Workers

DEADLY = 1000


def double(number: int) -> int:
    if number >= DEADLY:
        os._exit(1)
    return 2 * number


def spare(number: int) -> int:
    """What to try after a crash: the number without what is deadly about it."""
    return number - DEADLY


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2, 2**30) as started:
        yield started


def test_results_come_in_order(workers: Workers) -> None:
    assert list(workers.map(double, range(50))) == [2 * n for n in range(50)]


@pytest.mark.parametrize("deadly", [{0}, {2}, {5}, {0, 1, 2, 3, 4, 5}])
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_no_item_is_lost_wherever_a_worker_dies_and_however_slow_the_reader_is(
    workers: Workers, deadly: set[int], pause: float
) -> None:
    found = []
    for result in workers.map(double, (n + DEADLY * (n in deadly) for n in range(6)), spare):
        time.sleep(pause)
        found.append(result)
    assert found == [0, 2, 4, 6, 8, 10]


def test_what_after_crash_raises_is_raised(workers: Workers) -> None:
    def give_up(number: int) -> int:
        raise SourceError("an image that kills", expected="none", next_command="remove it")

    with pytest.raises(SourceError, match="kills"):
        list(workers.map(double, [1, DEADLY], give_up))


def test_an_error_does_not_wait_for_what_the_workers_are_at() -> None:
    def interrupted() -> None:
        with Workers(2, 2**30) as workers:
            for _ in workers.map(time.sleep, [0.0, 60.0, 60.0]):
                raise KeyboardInterrupt

    began, before = time.monotonic(), set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 20
    assert set(multiprocessing.active_children()) <= before
