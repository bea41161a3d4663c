"""SIGTERM as a question that the loop answers when it suits: Kubernetes asks, and kills half a minute later."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Preempted(SystemExit):
    """The training was told to stop and has kept a checkpoint. Not an error of the step: running again goes on.

    A SystemExit, so that nothing files it as a failure on its way out, and the process ends with 143, as one does that
    a SIGTERM has ended.
    """

    def __init__(self, step: int | None = None) -> None:
        """Take the number of steps that are kept, where it is known."""
        super().__init__(128 + signal.SIGTERM)
        self.step = step


class Interruption:
    """While entered, SIGTERM only sets `asked`. Outside the main thread, where no signal arrives, it does nothing."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interruption:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
