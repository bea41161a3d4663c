"""The gate's checks, each one function of the evaluation, and the verdict over all. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable

from components.core.config import GateConfig
from components.core.contracts import CheckResult, Evaluation, HoldoutScores, Verdict, VerdictWord
from components.core.statistics import wilson_interval
from components.gate.noninferiority import lower_bound, upper_bound

Check = Callable[[Evaluation, GateConfig], CheckResult | None]


def accurate_enough(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The challenger reaches the least accuracy on the new holdout, whatever the champion does."""
    scores = evaluation.new
    interval = wilson_interval(scores.correct, scores.rows, 1 - 2 * config.alpha)
    value = scores.accuracy or 0.0
    return CheckResult(
        name="accurate enough",
        passed=interval.lower >= config.min_accuracy,
        conclusive=not interval.lower < config.min_accuracy <= interval.upper,
        value=value,
        bound=interval.lower,
        threshold=config.min_accuracy,
        sentence=f"New holdout {value:.1%}, surely above {interval.lower:.1%}; wanted {config.min_accuracy:.1%}.",
    )


def keeps_old(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The challenger is not worse than the champion on the old holdout by more than the margin."""
    if evaluation.old is None:
        return None
    return _not_worse("not worse on old", evaluation.old, config.old_margin, config.alpha)


def keeps_new(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The same on the new holdout, over classes the champion knows. A window of new classes only has no such rows."""
    if evaluation.champion is None or not evaluation.new.paired.rows:
        return None
    return _not_worse("not worse on new", evaluation.new, config.new_margin, config.alpha)


def learns_new_classes(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """Each class that only the challenger knows is recognised often enough. A class without a held-out row is not."""
    counts = evaluation.new.new_classes
    if not counts:
        return None
    recall = {name: c.correct / c.rows if c.rows else 0.0 for name, c in counts.items()}
    intervals = {name: wilson_interval(c.correct, c.rows, 1 - 2 * config.alpha) for name, c in counts.items()}
    learnt = {name: c.rows > 0 and recall[name] >= config.min_new_class_recall for name, c in counts.items()}
    worst = min(counts, key=lambda name: (learnt[name], intervals[name].upper))  # the most certain failure, if any
    rows, interval, passed = counts[worst].rows, intervals[worst], learnt[worst]
    return CheckResult(
        name="learns new classes",
        passed=passed,
        conclusive=passed or interval.upper < config.min_new_class_recall,
        value=recall[worst],
        bound=interval.lower,
        threshold=config.min_new_class_recall,
        sentence=(
            f"New class '{worst}' is recognised {recall[worst]:.1%} on {rows} rows; "
            f"wanted {config.min_new_class_recall:.1%}."
        ),
    )


CHECKS: tuple[Check, ...] = (accurate_enough, keeps_old, keeps_new, learns_new_classes)


def judge(evaluation: Evaluation, config: GateConfig, *, higher_rung_left: bool) -> Verdict:
    """Run all checks and say one word.

    Returns:
        `promote` if all pass; else `escalate` while a rung is left; else `reject` if a check failed for certain (at
        confidence 1 - alpha), and `hold` if more rows could still turn each failed check.
    """
    checks = tuple(result for check in CHECKS if (result := check(evaluation, config)))
    failed = [check for check in checks if not check.passed]
    word: VerdictWord
    if not failed:
        word = "promote"
    elif higher_rung_left:
        word = "escalate"
    else:
        word = "reject" if any(check.conclusive for check in failed) else "hold"
    return Verdict(verdict=word, challenger=evaluation.challenger, champion=evaluation.champion, checks=checks)


def _not_worse(name: str, scores: HoldoutScores, margin: float, alpha: float) -> CheckResult:
    paired = scores.paired
    value = (paired.only_challenger_right - paired.only_champion_right) / paired.rows if paired.rows else 0.0
    bound = lower_bound(paired, alpha)
    passed = bound >= -margin
    return CheckResult(
        name=name,
        passed=passed,
        conclusive=passed or upper_bound(paired, alpha) < -margin,
        value=value,
        bound=bound,
        threshold=-margin,
        sentence=(
            f"{name.capitalize()} holdout: {100 * value:+.1f} points on {paired.rows} rows, "
            f"surely above {100 * bound:+.1f}; at most {100 * margin:.1f} may be lost."
        ),
    )
