"""From a budget of false alarms a year to the level of one test, and from looks to an alarm. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from scipy.optimize import brentq
from scipy.stats import binom

from components.core.config import DriftConfig

NORMAL = NormalDist()
MOST_LEVEL = 0.5
KEPT_BY = 0.75  # of all reference samples that could have been drawn


def test_level(config: DriftConfig, shared: float) -> float:
    """Level of the test of one window, so that false alarms stay within the budget year after year.

    An alarm asks for `alarm_windows` of the last `alarm_memory` windows to look changed, the latest among them. All are
    compared with one reference sample: where that happens to be unusual, its windows look changed more often than the
    level says, for as long as it is in use. The budget is kept with three of four references that could have been
    drawn, so that the level is below what the budget alone would give.

    Args:
        config: The budget, and how many windows must agree.
        shared: See `shared_noise`, in [0, 1).

    Returns:
        alpha in (0, 0.5].
    """
    budget = config.alarms_per_year / config.windows_per_year
    # A usual reference makes its windows alarm less often than the level says: that is no reason to raise it.
    return min(_level_for(budget, config, shared) for shared in (0.0, shared))


def _level_for(budget: float, config: DriftConfig, shared: float) -> float:
    if alarm_rate(MOST_LEVEL, config, shared) <= budget:
        return MOST_LEVEL
    return float(brentq(lambda level: alarm_rate(level, config, shared) - budget, 1e-12, MOST_LEVEL, xtol=1e-12))


def alarm_rate(level: float, config: DriftConfig, shared: float, unusual: float = KEPT_BY) -> float:
    """Chance of a false alarm at one window when each is tested at `level`, for one reference.

    Test statistics are taken as normal variables, of whose variance `shared` is the reference's. It is not a small
    matter: at a level of 0.05, windows of 500 against one reference of 2,000 were seen to alarm in 4 to 13 %.

    Args:
        level: In (0, 0.5].
        config: How many windows must agree.
        shared: See `shared_noise`, in [0, 1).
        unusual: Share of all references that are less unusual than this one, in (0, 1).
    """
    distance = shared**0.5 * NORMAL.inv_cdf(unusual)
    changed = NORMAL.cdf((NORMAL.inv_cdf(level) + distance) / (1 - shared) ** 0.5)
    return changed * float(binom.sf(config.alarm_windows - 2, config.alarm_memory - 1, changed))


def raise_alarm(changed: bool, before: Sequence[bool], config: DriftConfig) -> bool:
    """Tell whether a window that changed makes an alarm.

    Args:
        changed: Whether it did.
        before: Whether the windows before it did, oldest first, against the same champion.
        config: How many must agree.
    """
    recent = [*before, changed][-config.alarm_memory :]
    return changed and sum(recent) >= config.alarm_windows
