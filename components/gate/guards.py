"""What a challenger must not have harmed: each guard is one function of the evaluation. Values in, values out.

A guard fails only for certain harm and passes what cannot be told, the other way round than `checks`. So it needs few
rows, it adds no chance of promoting a model that is worse than a margin, and alpha is not divided among attempts: it is
the chance, at most, of turning down a challenger that harmed nothing beyond the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist

from components.core.config import GateConfig
from components.core.contracts import CheckResult, Evaluation, PairedOutcome
from components.gate.levels import holm
from components.gate.noninferiority import harm_p_value, upper_bound

Guard = Callable[[Evaluation, GateConfig], CheckResult | None]
QUANTILE = "0.95"  # the slow image of twenty: what users of a service wait for, and steadier than 0.99


def spares_classes(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """No class lost more than `gate.class_margin` for certain, on either holdout.

    To show instead that *no* class lost more would take thousands of rows of each class: 10 classes with the default
    margins of a holdout as a whole need ten times its rows. Score test of each class of each holdout, corrected by Holm
    over all of them. Where all classes are exactly at the margin, the normal approximation rejects up to 2.5 times as
    often as alpha says, at 200 rows a class with 10 classes; a class that lost nothing is hardly ever rejected.

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
    confidence, with a variance of at most accuracy (1 - accuracy) / rows. On the same rows they are not, which makes
    the guard slower, not stricter than it says.
    """
    scores, limit = evaluation.new, config.max_calibration_loss
    before, now = scores.champion_calibration_error, scores.calibration_error
    first, second = scores.paired.champion_accuracy, scores.paired.challenger_accuracy
    if limit is None or before is None or now is None or first is None or second is None:
        return None
    noise = sqrt((first * (1 - first) + second * (1 - second)) / scores.paired.rows)
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
    """An image does not take longer than `gate.max_latency_ratio` allows. Seconds of two devices do not compare."""
    before, now, ratio = evaluation.champion_cost, evaluation.challenger_cost, config.max_latency_ratio
    if ratio is None or before is None or now is None or before.device != now.device:
        return None
    if QUANTILE not in before.latency or QUANTILE not in now.latency:
        return None
    first, second = before.latency[QUANTILE], now.latency[QUANTILE]
    sentence = (
        f"An image took {1000 * first:.1f} ms and takes {1000 * second:.1f} on {now.device}; "
        f"at most {ratio:g} times as many may be."
    )
    return _within_ratio("stays fast", first, second, ratio, sentence)


def stays_small(evaluation: Evaluation, config: GateConfig) -> CheckResult | None:
    """The weights do not take more bytes than `gate.max_size_ratio` allows."""
    before, now, ratio = evaluation.champion_cost, evaluation.challenger_cost, config.max_size_ratio
    if ratio is None or before is None or now is None:
        return None
    told = f"Weights took {before.bytes / 1e6:.1f} MB and take {now.bytes / 1e6:.1f}"
    sentence = f"{told}; at most {ratio:g} times as many may be."
    return _within_ratio("stays small", before.bytes, now.bytes, ratio, sentence)


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


def _within_ratio(name: str, before: float, now: float, ratio: float, sentence: str) -> CheckResult:
    return CheckResult(
        name=name,
        passed=now <= ratio * before,
        conclusive=True,
        value=-now,
        bound=-now,
        threshold=-ratio * before,
        sentence=sentence,
    )
