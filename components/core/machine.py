"""What this machine gives: how many workers are worth starting."""

from __future__ import annotations

import os

MOST = 16  # a pod without a CPU limit sees all cores of its node, and each worker takes memory


def usable_cores() -> int:
    """Cores that this process may use, at most 16."""
    return min(MOST, len(os.sched_getaffinity(0)))
