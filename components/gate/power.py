"""How many rows a check needs: what a held challenger waits for, and which margins a holdout of a size can show.

Values in, values out. All of it takes the rates as known, so it is a plan, not a promise.
"""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist

from scipy.optimize import brentq

from components.gate.noninferiority import lost_share

POWER = 0.8  # the usual chance to aim at: four of five challengers as good as this one would pass
CLOSEST = 1e-9  # a difference as close to its margin as this is at the margin, but for rounding


def rows_needed(*, gained: float, lost: float, margin: float, level: float, power: float = POWER) -> int | None:
    """Rows that decide the check "not worse by more than the margin" with a chance of `power`: for the challenger where
    its true difference is above the margin, against it where that is below.

    Args:
        gained: Share of rows that only the challenger has right, in [0, 1].
        lost: Share of rows that only the champion has right, in [0, 1]. Their sum is the discordance.
        margin: Accuracy that may be lost, in (0, 1).
        level: Level of the check, in (0, 0.5).
        power: In [0.5, 1).

    Returns:
        At least 1; None where the true difference, `gained - lost`, is at the margin: no number helps.

    Source:
        (z_level * sd under the margin + z_power * sd under the truth)^2 / distance^2, the first sd as in Tango (1998):
        Nam, "Establishing equivalence of two treatments and sample size requirements in matched-pairs design",
        Biometrics 53 (1997). The simpler formula that takes the latter for both asks for too few rows where the
        discordance is not many times the margin.
    """
    if margin >= 1:
        return 1
    if abs(gained - lost + margin) <= CLOSEST:
        return None
    return max(1, ceil(_rows(gained, lost, margin, level, power)))


def _rows(gained: float, lost: float, margin: float, level: float, power: float) -> float:
    under_margin = sqrt(2 * lost_share(gained, lost, -margin) - margin * (1 + margin))
    under_truth = sqrt(max(0.0, gained + lost - (gained - lost) ** 2))
    z = NormalDist()
    root = z.inv_cdf(1 - level) * under_margin + z.inv_cdf(power) * under_truth
    return float((root / (gained - lost + margin)) ** 2)


def smallest_margin(*, rows: float, discordance: float, level: float, power: float = POWER) -> float | None:
    """The smallest margin that a holdout can show to be kept, with a chance of `power`, by a challenger just as good.

    In other words the least loss of accuracy that these rows tell from none.

    Args:
        rows: At least 1; not whole where rows of groups count as fewer.
        discordance: Share of rows on which one of both is right, in [0, 1].
        level: Level of the check, in (0, 0.5).
        power: In [0.5, 1).

    Returns:
        In (0, 1); None where no margin below 1 can be shown.
    """

    def missing(margin: float) -> float:
        return _rows(discordance / 2, discordance / 2, margin, level, power) - rows

    least, most = 1e-6, 1 - 1e-6
    if missing(most) > 0:
        return None
    margin: float = brentq(missing, least, most, xtol=1e-9) if missing(least) > 0 else least
    return margin


def rows_for_accuracy(*, accuracy: float, threshold: float, level: float, power: float = POWER) -> int | None:
    """Rows that decide the check "at least `threshold`" of a model of this accuracy with a chance of `power`.

    Args:
        accuracy: In [0, 1].
        threshold: In [0, 1].
        level: Level of the check, in (0, 0.5).
        power: In [0.5, 1).

    Returns:
        At least 1; None where the accuracy is at the threshold.

    Source:
        Size of the score test of a proportion, which Wilson's interval belongs to.
    """
    distance = accuracy - threshold
    if abs(distance) <= CLOSEST:
        return None
    z = NormalDist()
    at_threshold, at_truth = sqrt(threshold * (1 - threshold)), sqrt(accuracy * (1 - accuracy))
    root = (z.inv_cdf(1 - level) * at_threshold + z.inv_cdf(power) * at_truth) / distance
    return max(1, ceil(root * root))
