"""Intervals for proportions, shared by drift severity and the gate. Values in, values out."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from scipy.stats import beta

from components.core.contracts import Interval


def exact_interval(successes: float, trials: float, level: float) -> Interval:
    """One-sided bounds of a proportion, each at `level`, in [0, 1]: never surer than they say. [0, 1] without trials.

    Args:
        successes: In [0, trials].
        trials: Number of rows; not whole where rows that come in groups count as fewer.
        level: The chance, at most, that the proportion is beyond a bound; in (0, 0.5).

    Source:
        Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    missed = trials - successes
    return Interval(
        lower=float(beta.ppf(level, successes, missed + 1)) if successes else 0.0,
        upper=float(beta.ppf(1 - level, successes + 1, missed)) if missed else 1.0,
    )


def wilson_interval(successes: int, trials: int, confidence: float) -> Interval:
    """Two-sided score interval of a proportion, in [0, 1]. [0, 1] when there are no trials.

    Args:
        successes: In [0, trials].
        trials: Number of rows.
        confidence: Coverage, in (0, 1).

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if trials == 0:
        return Interval(lower=0.0, upper=1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(lower=max(0.0, (centre - half) / scale), upper=min(1.0, (centre + half) / scale))


def newcombe_interval(first: tuple[int, int], second: tuple[int, int], confidence: float) -> Interval:
    """Two-sided interval of the difference of two independent proportions, first minus second, in [-1, 1].

    Args:
        first: Successes and trials.
        second: The same of the other sample.
        confidence: Coverage, in (0, 1).

    Source:
        Newcombe, "Interval estimation for the difference between independent proportions", Stat. Med. 17 (1998),
        method 10.
    """
    a, b = wilson_interval(*first, confidence), wilson_interval(*second, confidence)
    p, q = (share[0] / share[1] if share[1] else 0.5 for share in (first, second))
    return Interval(
        lower=max(-1.0, p - q - sqrt((p - a.lower) ** 2 + (b.upper - q) ** 2)),
        upper=min(1.0, p - q + sqrt((a.upper - p) ** 2 + (q - b.lower) ** 2)),
    )
