"""A store that fails at its n-th change: what the tests of crashes go through, one change after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.storage import DirectoryStore


class Crash(Exception):
    pass


class CrashingStore(DirectoryStore):
    """Raises at its n-th change, before or after it is made."""

    def __init__(self, root: Path, number: int, *, after: bool) -> None:
        super().__init__(root)
        self.left, self.after = number, after

    def _change(self, make: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Crash
        made = make()
        if self.left == 0:
            raise Crash
        return made

    def put(self, key: str, data: bytes) -> None:
        self._change(lambda: super(CrashingStore, self).put(key, data))

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self._change(lambda: super(CrashingStore, self).put_new(key, data)))

    def delete(self, key: str) -> None:
        self._change(lambda: super(CrashingStore, self).delete(key))
