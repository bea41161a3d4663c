"""What would have changed a plan's mind: the nearest value of each lever at which another plan follows.

Values in, values out. The policy itself is asked again, with one value changed, at STEPS values in each direction: a
turn and its way back between two of them are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from components.core.contracts import Interval
from components.core.plans import Decision, Evidence
from components.decide.utility import Policy

ENOUGH = 1e-4  # of an accuracy, or of points
Case = tuple[Evidence, Policy]
STEPS, HALVINGS = 24, 40  # how finely a lever is moved: a step finds the turn, the halvings place it


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One value that could have been different.

    Attributes:
        value: What it is in a case; None where it is not known.
        moved: The case with another value.
        furthest: The least and the largest value that makes sense in a case.
        words: How another value is told, given it and the present one.
        whole: Whether it is a count.
    """

    value: Callable[[Case], float | None]
    moved: Callable[[Case, float], Case]
    furthest: Callable[[Case], tuple[float, float]]
    words: Callable[[float, float], str]
    whole: bool = False


def turning_points(case: Case, decide: Callable[[Evidence, Policy], Decision]) -> tuple[str, ...]:
    """Find what would have led to another plan.

    Args:
        case: What was decided on.
        decide: The policy.

    Returns:
        One sentence for each lever and direction that has a turn, the most telling lever first.
    """
    now = outcome_of(decide(*case))
    return tuple(
        sentence for lever in LEVERS for sentence in _turns(lever, case, now, lambda c: outcome_of(decide(*c)))
    )


def outcome_of(plan: Decision) -> str:
    """What a plan comes down to: its action, or its first strategy."""
    return plan.rungs[0].strategy if plan.rungs else plan.action


def _turns(lever: Lever, case: Case, now: str, outcome: Callable[[Case], str]) -> Iterator[str]:
    value = lever.value(case)
    if value is None:
        return
    least, most = lever.furthest(case)
    for end in (min(least, value), max(most, value)):
        found = _nearest_turn(value, end, lambda v: outcome(lever.moved(case, v)), now, whole=lever.whole)
        if found is not None:
            yield f"It would have been {found[1]} {lever.words(found[0], value)}."


def _nearest_turn(
    start: float, end: float, outcome: Callable[[float], str], now: str, *, whole: bool
) -> tuple[float, str] | None:
    """A value near `start`, toward `end`, with another outcome, and that outcome."""
    inside = start
    for step in range(1, STEPS + 1):
        outside = start + (end - start) * (step / STEPS) ** 2  # finer near the start
        outside = float(round(outside)) if whole else outside
        if outcome(outside) != now:
            break
        inside = outside
    else:
        return None
    for _ in range(HALVINGS):
        if abs(outside - inside) <= (1.0 if whole else ENOUGH):
            break
        middle = (inside + outside) / 2
        middle = float(round(middle)) if whole else middle
        if outcome(middle) == now:
            inside = middle
        else:
            outside = middle
    return outside, outcome(outside)


def _with_drop(case: Case, drop: float) -> Case:
    evidence, policy = case
    assert evidence.drop is not None
    assert evidence.drop_interval is not None
    by = drop - evidence.drop
    bounds = Interval(lower=evidence.drop_interval.lower + by, upper=evidence.drop_interval.upper + by)
    return evidence.model_copy(update={"drop": drop, "drop_interval": bounds}), policy


def with_rows(case: Case, rows: float) -> Case:
    """More or fewer images of the same kind: every class by the same factor, and the drop known so much better."""
    evidence, policy = case
    factor = rows / max(1, evidence.new_rows)
    changes: dict[str, object] = {
        "new_rows": round(rows),
        "held_out": round(evidence.held_out * factor),
        "window_classes": {name: round(count * factor) for name, count in evidence.window_classes.items()},
    }
    if evidence.drop is not None and evidence.drop_interval is not None and factor > 0:
        low, high = evidence.drop - evidence.drop_interval.lower, evidence.drop_interval.upper - evidence.drop
        changes["drop_interval"] = Interval(
            lower=evidence.drop - low / sqrt(factor), upper=evidence.drop + high / sqrt(factor)
        )
    return evidence.model_copy(update=changes), policy


def _with_worth(case: Case, points: float) -> Case:
    evidence, policy = case
    return evidence, replace(policy, decision=policy.decision.model_copy(update={"retrain_worth": points}))


def _drop_words(drop: float, now: float) -> str:
    side = "above" if drop > now else "below"
    return f"if the champion's loss were {side} {100 * drop:.1f} points (it is {100 * now:.1f})"


def _row_words(rows: float, now: float) -> str:
    more = "more" if rows > now else "fewer"
    return f"with {abs(rows - now):,.0f} {more} training images ({rows:,.0f} instead of {now:,.0f})"


def _worth_words(points: float, now: float) -> str:
    side = "above" if points > now else "below"
    return f"if a full retrain had to bring {side} {points:.2f} points to be worth its compute (it is {now:.2f})"


LEVERS: Sequence[Lever] = (
    Lever(
        value=lambda case: case[0].drop if case[0].drop_interval else None,
        moved=_with_drop,
        furthest=lambda case: (-0.1, 1.0),
        words=_drop_words,
    ),
    Lever(
        value=lambda case: float(case[0].new_rows),
        moved=with_rows,
        furthest=lambda case: (max(2.0, case[0].new_rows / 20), 20.0 * max(case[0].new_rows, case[0].old_rows, 1)),
        words=_row_words,
        whole=True,
    ),
    Lever(
        value=lambda case: case[1].decision.retrain_worth,
        moved=_with_worth,
        furthest=lambda case: (0.0, 50.0),
        words=_worth_words,
    ),
)
