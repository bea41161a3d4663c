"""Worker processes: a function over a stream of items, results in order, and no item that a crash can lose.

Not covered: what the work is (`workers`, `packing`).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from components.core.machine import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1


class Workers:
    """Processes that are forked from this one when the context is entered.

    Forked, because a worker is there in milliseconds then and shares the memory of what is imported; a spawned one
    would first import whatever started us, kfp included. Enter it before threads are started.
    """

    def __init__(self, count: int | None, memory_bytes: int) -> None:
        """Say how many (none: see `usable_cores`), and what one may take beyond what it has now."""
        self.count, self._memory = count or usable_cores(), memory_bytes
        self._pool = self._fork(self.count)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:  # do not wait for what they are at
            for process in self._processes:
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        after_crash: Callable[[Item], Item] | None = None,
    ) -> Iterator[Result]:
        """Apply a function to a stream, few items ahead; results in order.

        Args:
            function: Of a module; its items and results can be pickled.
            items: What to apply it to.
            after_crash: Makes of an item that killed its worker the one to try next; raises when there is none. Without
                it, such an item is an error.

        Raises:
            BrokenProcessPool: A worker died, and nobody knows better.
        """
        waiting = iter(items)
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        while True:
            while len(ahead) <= self.count and (item := next(waiting, None)) is not None:
                ahead.append((item, self._submit(function, item)))
            if not ahead:
                return
            try:
                result = ahead[0][1].result()
            except BrokenProcessPool:
                if after_crash is None:
                    raise
                # Which of them it was, nobody knows: each alone finds out.
                alone = [self._alone(function, item, after_crash) for item, _ in ahead]
                ahead.clear()
                self._pool.shutdown()
                self._pool = self._fork(self.count)
                yield from alone
            else:
                ahead.popleft()
                yield result

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        try:
            return self._pool.submit(function, item)
        except BrokenProcessPool as error:  # a worker died since the last result: this item is as lost as those ahead
            lost: Future[Result] = Future()
            lost.set_exception(error)
            return lost

    def _alone(self, function: Callable[[Item], Result], item: Item, after_crash: Callable[[Item], Item]) -> Result:
        while True:
            with self._fork(1) as pool:
                try:
                    return pool.submit(function, item).result()
                except BrokenProcessPool:
                    item = after_crash(item)

    def _fork(self, count: int) -> ProcessPoolExecutor:
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _prepare, (self._memory,))
        pool.submit(os.getpid).result()  # the first task starts all of them
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        return pool


def _prepare(memory_bytes: int) -> None:
    """In a new worker: bound what a hostile image can take, die with the parent, and keep quiet."""
    warnings.simplefilter("ignore")  # Pillow warns of what is counted here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    process = ctypes.CDLL(None)
    if hasattr(process, "prctl"):
        process.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + memory_bytes if hard == resource.RLIM_INFINITY else min(used + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
