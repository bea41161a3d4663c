"""What a challenger must not have harmed: each guard is one function of the evaluation. Values in, values out.

A guard fails only for certain harm and passes what cannot be told, the other way round than `checks`. So it needs few
rows, it adds no chance of promoting a model that is worse than a margin, and alpha is not divided among attempts: it is
about the chance of turning down a challenger that harmed nothing beyond the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist, median

from scipy.stats import binom

from components.core.config import GateConfig
from components.core.contracts import CheckResult, Evaluation, PairedOutcome
from components.gate.levels import holm
from components.gate.noninferiority import harm_p_value, upper_bound

Guard = Callable[[Evaluation, GateConfig], CheckResult | None]


def spares_classes(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """No class lost more than `gate.class_margin` for certain, on either holdout.

    To show instead that *no* class lost more would take thousands of rows of each class: 10 classes with the default
    margins of a holdout as a whole need ten times its rows. Score test of each class of each holdout, corrected by Holm
    over all of them. Where all classes are exactly at the margin, the normal approximation rejects up to 2.4 times as
    often as alpha says, at 200 rows a class with 10 classes; a class that lost nothing is hardly ever rejected. Few
    rows show little: of 10 classes one must have 8 before even its complete loss is certain, of 1,000 it takes 20.

    Returns:
        The class that speaks most clearly against the challenger: its loss, and the most that it can be said to have
        kept (upper bound at alpha divided by the number of classes).
    """
    classes = _classes(evaluation)
    if not classes:
        return None
    p_values = {name: harm_p_value(paired, config.class_margin) for name, paired in classes.items()}
    harmed = holm(p_values, config.alpha)
    worst = harmed[0] if harmed else min(classes, key=lambda name: (p_values[name], _change(classes[name])))
    paired, change = classes[worst], _change(classes[worst])
    others = f", and {len(harmed) - 1} more" if len(harmed) > 1 else ""
    told = f"lost more than {100 * config.class_margin:.1f} points for certain" if harmed else "is the worst class"
    return CheckResult(
        name="spares classes",
        passed=not harmed,
        conclusive=True,
        value=change,
        bound=upper_bound(paired, config.alpha / len(classes)),
        threshold=-config.class_margin,
        sentence=f"{worst} {told}: {100 * change:+.1f} points on {paired.rows} rows{others}.",
    )


def stays_calibrated(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The expected calibration error on the new holdout did not grow by more than `gate.max_calibration_loss`.

    The bound takes the noise of both errors as if they were independent: each is a mean over bins of accuracy less
    confidence, with a variance, given the confidences, of at most accuracy (1 - accuracy) / rows. On the same rows they
    are not, which makes the guard slower. Of 20 rows it may be stricter than it says.
    """
    scores, limit = evaluation.new, config.max_calibration_loss
    before, now = scores.champion_calibration_error, scores.calibration_error
    first, second = scores.paired.champion_accuracy, scores.paired.challenger_accuracy
    if limit is None or before is None or now is None or first is None or second is None:
        return None
    rows = scores.paired.rows / max(scores.design_effect, scores.paired.design_effect)
    noise = sqrt((first * (1 - first) + second * (1 - second)) / rows)
    bound = before - now + NormalDist().inv_cdf(1 - config.alpha) * noise
    return CheckResult(
        name="stays calibrated",
        passed=bound >= -limit,
        conclusive=True,
        value=before - now,
        bound=bound,
        threshold=-limit,
        sentence=(
            f"Calibration error on new holdout {100 * before:.1f} to {100 * now:.1f} points; "
            f"at most {100 * limit:.1f} may be added for certain."
        ),
    )


def stays_fast(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """An image does not take longer than `gate.max_latency_ratio` allows, in the median of turns that both models took
    one after the other. So what else the machine does slows down both, and a burst spoils few turns.

    Source:
        Distribution-free lower bound of a median by the binomial (sign test): Conover, "Practical Nonparametric
        Statistics", 3rd ed. (1999), 3.2.
    """
    before, now, limit = evaluation.champion_cost, evaluation.challenger_cost, config.max_latency_ratio
    if limit is None or before is None or now is None or not now.turns:
        return None
    ratios = sorted(second / first for first, second in zip(before.turns, now.turns, strict=True))
    below = int(binom.ppf(config.alpha, len(ratios), 0.5)) - 1  # the median is above this one, but for alpha
    least = ratios[below] if below >= 0 else 0.0  # so few turns show nothing
    return CheckResult(
        name="stays fast",
        passed=least <= limit,
        conclusive=True,
        value=-median(ratios),
        bound=-least,
        threshold=-limit,
        sentence=(
            f"An image took {1000 * median(before.turns):.1f} ms and takes {1000 * median(now.turns):.1f} on "
            f"{now.device}, surely {least:.2f} times as long; at most {limit:g} times may be."
        ),
    )


def stays_small(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The weights do not take more bytes than `gate.max_size_ratio` allows."""
    before, now, ratio = evaluation.champion_cost, evaluation.challenger_cost, config.max_size_ratio
    if ratio is None or before is None or now is None:
        return None
    told = f"Weights took {before.bytes / 1e6:.1f} MB and take {now.bytes / 1e6:.1f}"
    return CheckResult(
        name="stays small",
        passed=now.bytes <= ratio * before.bytes,
        conclusive=True,
        value=-now.bytes,
        bound=-now.bytes,
        threshold=-ratio * before.bytes,
        sentence=f"{told}; at most {ratio:g} times as many may be.",
    )


GUARDS: tuple[Guard, ...] = (spares_classes, stays_calibrated, stays_fast, stays_small)


def _classes(evaluation: Evaluation) -> dict[str, PairedOutcome]:
    """The classes of both holdouts by a name that tells them apart."""
    sides = (("old", evaluation.old), ("new", evaluation.new))
    return {
        f"Class '{name}' of {side} holdout": paired
        for side, scores in sides
        if scores is not None
        for name, paired in scores.by_class.items()
    }


def _change(paired: PairedOutcome) -> float:
    return (paired.only_challenger_right - paired.only_champion_right) / paired.rows if paired.rows else 0.0
