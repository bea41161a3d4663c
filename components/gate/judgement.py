"""The verdict over all checks and guards. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from components.core.config import GateConfig
from components.core.contracts import CheckResult, Evaluation, Verdict, VerdictWord
from components.gate.checks import CHECKS, within_budget
from components.gate.guards import GUARDS
from components.gate.levels import Looks

ONE_LOOK = Looks()


def judge(
    evaluation: Evaluation,
    config: GateConfig,
    *,
    higher_rung_left: bool,
    looks: Looks = ONE_LOOK,
    holdout_fraction: float = 1.0,
) -> Verdict:
    """Run all checks and guards and say one word.

    Args:
        evaluation: What was measured. What an earlier release did not measure is not checked.
        config: Margins and limits.
        higher_rung_left: Whether a stronger strategy of the plan is left to try.
        looks: How often the same rows are looked at, which decides how sure each attempt must be.
        holdout_fraction: Share of labelled images that become rows of a holdout, in (0, 1].

    Returns:
        `promote` if all pass; else `escalate` while a rung is left and some model could pass on these rows; else
        `reject` if a check failed for certain (at confidence 1 - level), and `hold` if more rows could still turn each
        failed check.
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
    elif higher_rung_left and all(check.within_reach for check in failed):
        word = "escalate"
    else:
        word = "reject" if any(check.conclusive for check in failed) else "hold"
    return Verdict(
        verdict=word,
        challenger=evaluation.challenger,
        champion=evaluation.champion,
        checks=checks,
        level=level.now,
        terms=looks.describe(config.alpha, anchored=evaluation.anchor is not None),
        images_to_decide=_images_to_decide(failed, holdout_fraction) if word == "hold" else None,
    )


def _images_to_decide(failed: Sequence[CheckResult], holdout_fraction: float) -> int | None:
    """What settles the check that needs most. None where a check cannot tell: then more images alone may not do."""
    rows = [check.rows_to_decide for check in failed]
    known = [count for count in rows if count is not None]
    return ceil(max(known) / holdout_fraction) if known and len(known) == len(rows) else None
