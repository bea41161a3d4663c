"""Which rows each step takes, and having them ready when it asks.

The order is a function of the seed and the epoch, so a step's rows are known without those before it: training can go
on anywhere. Not covered: what is done with a batch (`loop`).
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from components.train.randomness import Purpose, generator

AHEAD = 3  # batches that are gathered before they are asked for


class Rows(Protocol):
    """Training rows: a tensor (n, ...), or pixels on disk that are gathered when they are asked for."""

    device: torch.device

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The rows at an index, int64 (b,), on `device`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps of a training: `epochs` passes over `rows` rows, in steps of at most one row more than `step_rows`.

    `weights`, float64 (rows,), draw rows with replacement in proportion; without them each row comes once an epoch.
    """

    rows: int
    step_rows: int
    epochs: int
    seed: int
    weights: np.ndarray | None = None

    @property
    def steps_an_epoch(self) -> int:
        """Rows are spread evenly, so that no step has fewer than two: batch norm needs two."""
        return max(1, min(math.ceil(self.rows / self.step_rows), self.rows // 2))

    @property
    def least_rows(self) -> int:
        """Rows of the smallest step."""
        return self.rows // self.steps_an_epoch

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_an_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether step number `step` (from 0) is the last of its epoch."""
        return (step + 1) % self.steps_an_epoch == 0

    def from_step(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """Each step from `first` on, with its rows, int64 (b,)."""
        for epoch in range(first // self.steps_an_epoch, self.epochs):
            batches = self.order(epoch).tensor_split(self.steps_an_epoch)
            for number, index in enumerate(batches, start=epoch * self.steps_an_epoch):
                if number >= first:
                    yield number, index

    def order(self, epoch: int) -> Tensor:
        """The rows in the order of an epoch, int64 (rows,)."""
        rng = generator(self.seed, Purpose.ORDER, epoch)
        if self.weights is None:
            return torch.from_numpy(rng.permutation(self.rows))
        chances = self.weights / self.weights.sum()
        return torch.from_numpy(rng.choice(self.rows, self.rows, p=chances))


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The rows of one step: its number from 0, which rows of all (int64, on the CPU), and their values."""

    step: int
    index: Tensor
    rows: Tensor


def prefetch(rows: Rows, steps: Iterator[tuple[int, Tensor]], device: torch.device) -> Generator[Gathered, None, None]:
    """Gather the rows of steps and bring them to the device; those on disk are gathered ahead, by a thread.

    The thread ends when the iterator is closed. An error in it is raised here.
    """
    if isinstance(rows, Tensor):
        for step, index in steps:
            yield Gathered(step=step, index=index, rows=rows[index.to(rows.device)].to(device))
        return
    ready: queue.Queue[Gathered | BaseException | None] = queue.Queue(AHEAD)
    closed = threading.Event()

    def offer(item: Gathered | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def gather() -> None:
        try:
            for step, index in steps:
                values = rows[index]
                if device.type == "cuda":
                    values = values.pin_memory()
                if not offer(Gathered(step=step, index=index, rows=values)):
                    return
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
            offer(error)
        offer(None)

    thread = threading.Thread(target=gather, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield Gathered(step=item.step, index=item.index, rows=item.rows.to(device, non_blocking=True))
    finally:
        closed.set()
        thread.join()
