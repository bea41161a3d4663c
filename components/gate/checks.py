"""What a challenger must show: each check is one function of the evaluation. Values in, values out.

The checks pass only what is certain, at the level of the attempt (see `levels`), but for new classes, of which there
are too few rows for that; those that turn down only what is certain are `guards`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from components.core.config import GateConfig
from components.core.contracts import CheckResult, ClassRecall, Evaluation, Interval, PairedOutcome
from components.core.statistics import exact_interval
from components.gate.levels import Level
from components.gate.noninferiority import lower_bound, upper_bound
from components.gate.power import rows_for_accuracy, rows_needed, smallest_margin

Check = Callable[[Evaluation, GateConfig, Level], CheckResult | None]


def accurate_enough(evaluation: Evaluation, config: GateConfig, level: Level) -> CheckResult | None:
    """The challenger reaches the least accuracy on the new holdout, whatever the champion does (exact bound)."""
    scores, threshold = evaluation.new, config.min_accuracy
    interval = exact_interval(scores.correct / scores.design_effect, scores.rows / scores.design_effect, level.now)
    best = exact_interval(scores.rows / scores.design_effect, scores.rows / scores.design_effect, level.now)
    value = scores.accuracy or 0.0
    passed = scores.rows > 0 and interval.lower >= threshold
    conclusive = passed or interval.upper < threshold
    more = None
    if scores.rows and not conclusive:
        needed = rows_for_accuracy(accuracy=value, threshold=threshold, level=level.later)
        more = _more_rows(needed, scores.rows, scores.design_effect)
    measured = f"{value:.1%}, surely above {interval.lower:.1%}" if scores.rows else "has no rows"
    return CheckResult(
        name="accurate enough",
        passed=passed,
        conclusive=conclusive,
        value=value,
        bound=interval.lower,
        threshold=threshold,
        sentence=f"New holdout {measured}; wanted {threshold:.1%}.{_say_more(more)}",
        rows_to_decide=more,
        within_reach=scores.rows > 0 and best.lower >= threshold,
    )


def keeps_old(evaluation: Evaluation, config: GateConfig, level: Level) -> CheckResult | None:
    """The challenger is not worse than the champion on the old holdout by more than the margin."""
    if evaluation.old is None:
        return None
    return _not_worse(
        "not worse on old", "Not worse on old holdout", evaluation.old.paired, config.old_margin, level, grows=False
    )


def keeps_new(evaluation: Evaluation, config: GateConfig, level: Level) -> CheckResult | None:
    """The same on the new holdout, over classes the champion knows. A window of new classes only has no such rows."""
    if evaluation.champion is None or not evaluation.new.paired.rows:
        return None
    return _not_worse(
        "not worse on new", "Not worse on new holdout", evaluation.new.paired, config.new_margin, level, grows=True
    )


def within_budget(evaluation: Evaluation, config: GateConfig, level: Level) -> CheckResult | None:
    """Against the last version trained from scratch, no more is forgotten than the budget allows.

    Each promotion may lose a little within the margins; the anchor stays where it is, so here the losses add up. It has
    a level of its own (`Looks.anchor_level`): the rows of the anchor's windows judge every run until the next training
    from scratch.
    """
    anchor = evaluation.anchor
    if anchor is None:
        return None
    title = f"Against {anchor.version[:12]}, the last version trained from scratch"
    return _not_worse("forgetting budget", title, anchor.paired, config.budget, level, grows=False)


def learns_new_classes(evaluation: Evaluation, config: GateConfig, level: Level) -> CheckResult | None:
    """The classes that only the challenger knows are recognised often enough, in the mean over classes as measured, and
    none of them too seldom for certain (exact bound, at the level divided among them: Bonferroni). Each must have been
    measured.

    To show of *each* that it is recognised would take tens of rows of each: of 100 classes with 5 rows some always seem
    too low.
    """
    counts, wanted = evaluation.new.new_classes, config.min_new_class_recall
    if not counts:
        return None
    unseen = [name for name, count in counts.items() if not count.rows]
    intervals = {name: _interval(count, level.now / len(counts)) for name, count in counts.items()}
    worst = min(counts, key=lambda name: intervals[name].upper)
    recall = mean(count.correct / count.rows if count.rows else 0.0 for count in counts.values())
    missed, rows = intervals[worst].upper < wanted, counts[worst].rows
    if unseen:
        told = f"New class '{unseen[0]}' has no held-out row: deliver more images of it."
    elif missed:
        share = counts[worst].correct / rows
        told = f"New class '{worst}' is recognised {share:.1%} on {rows} rows, too seldom for certain;"
    else:
        told = f"New classes ({len(counts)}) are recognised {recall:.1%} in the mean, none too seldom for certain;"
    return CheckResult(
        name="learns new classes",
        passed=recall >= wanted and not missed and not unseen,
        conclusive=missed or (recall >= wanted and not unseen),
        value=recall,
        bound=recall,
        threshold=wanted,
        sentence=told if unseen else f"{told} wanted {wanted:.1%}.",
        within_reach=not unseen,
    )


CHECKS: tuple[Check, ...] = (accurate_enough, keeps_old, keeps_new, learns_new_classes)


def _interval(count: ClassRecall, level: float) -> Interval:
    return exact_interval(count.correct / count.design_effect, count.rows / count.design_effect, level)


def _not_worse(
    name: str, title: str, paired: PairedOutcome, margin: float, level: Level, *, grows: bool
) -> CheckResult:
    """Tango's test of "at least as good, but for the margin".

    Args:
        grows: Whether more labelled images of the window become rows of this holdout; old windows stay as they are.
    """
    gained, lost, rows = paired.only_challenger_right, paired.only_champion_right, paired.rows
    value = (gained - lost) / rows if rows else 0.0
    bound = lower_bound(paired, level.now)
    passed = bound >= -margin
    conclusive = passed or upper_bound(paired, level.now) < -margin
    more, say = None, ""
    if rows and not conclusive and grows:
        needed = rows_needed(gained=gained / rows, lost=lost / rows, margin=margin, level=level.later)
        more = _more_rows(needed, rows, paired.design_effect)
        say = _say_more(more)
    elif rows and not conclusive:
        least = smallest_margin(rows=rows / paired.design_effect, discordance=(gained + lost) / rows, level=level.now)
        say = (
            ""
            if least is None
            else f" These rows, which are all there are, tell losses of {100 * least:.1f} points from none."
        )
    told = f"{100 * value:+.1f} points on {rows} rows, surely above {100 * bound:+.1f}" if rows else "no rows"
    if paired.design_effect >= 1.1:
        told += f" (in groups, so that they tell as much as {rows / paired.design_effect:.0f} single ones)"
    return CheckResult(
        name=name,
        passed=passed,
        conclusive=conclusive,
        value=value,
        bound=bound,
        threshold=-margin,
        sentence=f"{title}: {told}; at most {100 * margin:.1f} may be lost.{say}",
        rows_to_decide=more,
        within_reach=lower_bound(_best(paired), level.now) >= -margin,
    )


def _best(paired: PairedOutcome) -> PairedOutcome:
    """What a challenger that is always right would have on these rows."""
    right, wrong = paired.both_right + paired.only_champion_right, paired.both_wrong + paired.only_challenger_right
    return PairedOutcome(both_right=right, only_challenger_right=wrong, design_effect=paired.design_effect)


def _more_rows(needed: int | None, rows: int, design_effect: float) -> int | None:
    """At these rates the check is open with the rows that there are, so that it needs more than these."""
    return None if needed is None else max(1, round(needed * design_effect) - rows)


def _say_more(rows: int | None) -> str:
    """The number with two digits: the rates that it rests on are no better known."""
    if rows is None:
        return ""
    return f" About {int(float(f'{rows:.2g}')):,} more rows of this holdout would decide."
