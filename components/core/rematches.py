"""Rematches: what a challenger that lost the race to the ledger is judged by, against the champion that won it.

Each is filed next to the first judgement of its attempt, under a name of its own; the last one is what counts. Not
covered: who is asked to judge again (`promote`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from components.core.config import MAX_RUNGS
from components.core.contracts import Evaluation, Verdict
from components.core.runs import Run


@dataclass(frozen=True, kw_only=True)
class Rematch:
    """Number `number` (from 1) of an attempt, against `champion`, which was promoted since the judgement before."""

    number: int
    champion: str | None


Judge = Callable[[Rematch], Verdict]
"""Evaluates and gates the challenger again, and files both."""


def judgement_name(attempt: int | str, rematch: int = 0) -> str:
    """What the records of a judgement of an attempt (or of the run) are named by: rematch 0 is the first one."""
    return f"{attempt}-rematch-{rematch}" if rematch else str(attempt)


def list_verdicts(run: Run, rung: int) -> list[Verdict]:
    """The verdicts on an attempt, those of rematches in order after the first; empty while it was not judged."""
    found: list[Verdict] = []
    while not found or found[-1].verdict == "promote":  # only what passed is ever judged again
        verdict = run.read(f"gate-{judgement_name(rung, len(found))}", Verdict)
        if verdict is None:
            break
        found.append(verdict)
    return found


def last_judgement(run: Run, rung: int) -> tuple[Evaluation | None, Verdict | None]:
    """What counts of an attempt: its last verdict and what that was based on; None for what was not filed."""
    verdicts = list_verdicts(run, rung)
    evaluation = run.read(f"evaluate-{judgement_name(rung, max(0, len(verdicts) - 1))}", Evaluation)
    return evaluation, verdicts[-1] if verdicts else None


def list_attempts(run: Run) -> list[list[Verdict]]:
    """The verdicts on each attempt that was judged, in order."""
    attempts = (list_verdicts(run, rung) for rung in range(1, MAX_RUNGS + 1))
    return [verdicts for verdicts in attempts if verdicts]
