"""A store that fails at its n-th change: what the tests of crashes go through, one change after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.storage import DirectoryStore


class Crash(Exception):
    """The process is gone."""


class CrashingStore(DirectoryStore):
    """Dies at its n-th change, before or after it is made, and makes none from then on, whoever catches what."""

    def __init__(self, root: Path, number: int, *, after: bool) -> None:
        super().__init__(root)
        self.left, self.after, self.crashed = number, after, False

    def _change(self, make: Callable[[], Any]) -> Any:
        if self.crashed:
            raise Crash
        self.left -= 1
        self.crashed = self.left == 0
        if self.crashed and not self.after:
            raise Crash
        made = make()
        if self.crashed:
            raise Crash
        return made

    def put(self, key: str, data: bytes) -> None:
        self._change(lambda: super(CrashingStore, self).put(key, data))

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self._change(lambda: super(CrashingStore, self).put_new(key, data)))

    def delete(self, key: str) -> None:
        self._change(lambda: super(CrashingStore, self).delete(key))
