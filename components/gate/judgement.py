"""The verdict over all checks and guards. Values in, values out."""

from __future__ import annotations

from components.core.config import GateConfig
from components.core.contracts import Evaluation, Verdict, VerdictWord
from components.gate.checks import CHECKS, within_budget
from components.gate.guards import GUARDS
from components.gate.levels import Looks

ONE_LOOK = Looks()


def judge(evaluation: Evaluation, config: GateConfig, *, higher_rung_left: bool, looks: Looks = ONE_LOOK) -> Verdict:
    """Run all checks and guards and say one word.

    Args:
        evaluation: What was measured. What an earlier release did not measure is not checked.
        config: Margins and limits.
        higher_rung_left: Whether a stronger strategy of the plan is left to try.
        looks: How often the same rows are looked at, which decides how sure each attempt must be.

    Returns:
        `promote` if all pass; else `escalate` while a rung is left; else `reject` if a check failed for certain (at
        confidence 1 - level), and `hold` if more rows could still turn each failed check.
    """
    level = looks.level(config.alpha)
    results = [
        *(check(evaluation, config, level) for check in CHECKS),
        within_budget(evaluation, config, looks.anchor_level(config.alpha)),
        *(guard(evaluation, config) for guard in GUARDS),
    ]
    checks = tuple(result for result in results if result is not None)
    failed = [check for check in checks if not check.passed]
    word: VerdictWord
    if not failed:
        word = "promote"
    elif higher_rung_left:
        word = "escalate"
    else:
        word = "reject" if any(check.conclusive for check in failed) else "hold"
    return Verdict(
        verdict=word,
        challenger=evaluation.challenger,
        champion=evaluation.champion,
        checks=checks,
        level=level,
        terms=looks.describe(config.alpha, anchored=evaluation.anchor is not None),
    )
