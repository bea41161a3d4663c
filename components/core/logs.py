"""Logging and progress for entry points: bars on a terminal, one plain line now and then in a pod.

Not covered: metrics (`metrics`). Library code only calls `logging.getLogger(__name__)` and `progress`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
PLAIN_INTERVAL_SECONDS = 5.0
BAR_INTERVAL_SECONDS = 0.1


def configure(level: int = logging.INFO) -> None:
    """Log to standard error: one line an event, time first. Only entry points call this."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("botocore", "boto3", "s3transfer", "urllib3", "great_expectations", "matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how far a loop is.

    Args:
        label: What is being done.
        total: How many things there are; None while nobody knows.

    Yields:
        A function to call with the number of things done since the last call. Thread-safe enough for display.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        # No refresh thread: worker processes are forked while this runs.
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
            task = bar.add_task(label, total=total)
            drawn = 0.0

            def draw(by: int) -> None:
                nonlocal drawn
                bar.advance(task, by)
                if time.monotonic() - drawn >= BAR_INTERVAL_SECONDS:
                    drawn = time.monotonic()
                    bar.refresh()

            yield draw
        return
    done, last = 0, time.monotonic()

    def advance(by: int) -> None:
        nonlocal done, last
        done += by
        if time.monotonic() - last >= PLAIN_INTERVAL_SECONDS:
            last = time.monotonic()
            logger.info("%s: %d%s", label, done, "" if total is None else f" of {total}")

    yield advance
