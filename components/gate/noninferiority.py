"""How much worse may the challenger be, given paired answers on the same rows? Values in, values out."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from scipy.optimize import brentq

from components.core.contracts import PairedOutcome


def lost_share(gained: float, lost: float, difference: float) -> float:
    """The share of rows that only the champion has right, as the rows suggest it if the difference were `difference`.

    Args:
        gained: Share of rows that only the challenger has right, in [0, 1].
        lost: Share of rows that only the champion has right, in [0, 1]; both together at most 1.
        difference: Hypothesis of challenger minus champion accuracy, in (-1, 1).

    Returns:
        Its restricted maximum likelihood estimate, in [0, 1]. That of the rows gained is this plus the difference.

    Source:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Stat. Med. 17 (1998), equation for q21, divided by the number of rows.
    """
    b = -(gained + lost) + (2 - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    return (sqrt(max(0.0, b * b - 8 * c)) - b) / 4  # rounding may leave -1e-17 under the root


def paired_score(outcome: PairedOutcome, difference: float) -> float:
    """Score statistic of "challenger minus champion accuracy is `difference`": standard normal under that hypothesis.

    Args:
        outcome: At least one row.
        difference: Hypothesis, in (-1, 1).

    Returns:
        Positive where the rows speak for a larger difference; +-inf where the hypothesis leaves no variance.

    Source:
        Tango (1998), see `lost_share`. Rows that come in groups count as fewer: Rao and Scott (1992), see
        `evaluate/clusters.py`.
    """
    n, gained, lost = outcome.changes
    assert n > 0, "a score needs rows"
    variance = n * (2 * lost_share(gained / n, lost / n, difference) + difference * (1 - difference))
    excess = gained - lost - n * difference
    if variance <= 1e-12:
        return 0.0 if excess == 0 else float("inf") if excess > 0 else float("-inf")
    return excess / sqrt(variance)


def lower_bound(outcome: PairedOutcome, alpha: float) -> float:
    """One-sided lower confidence bound of challenger minus champion accuracy, in [-1, 1]; -1 when there are no rows.

    Args:
        outcome: Paired answers.
        alpha: The chance, at most, that the true difference is below the bound; in (0, 0.5).

    The chance is that of a normal approximation: with 200 independent rows or more it was exceeded by a thirteenth of
    itself at most (4.8 % for 4.5 %), with 50 or 100 by an eighth; `benchmarks/gate.py` adds up all tables.
    """
    if outcome.rows == 0:
        return -1.0
    z = -NormalDist().inv_cdf(alpha)
    estimate = (outcome.only_challenger_right - outcome.only_champion_right) / outcome.rows
    edge = -1 + 1e-9
    if estimate <= edge or paired_score(outcome, edge) <= z:
        return -1.0
    # At the estimate the score is 0, at the edge it is above z, and it falls in between.
    bound: float = brentq(lambda d: min(paired_score(outcome, d), 1e9) - z, edge, min(estimate, 1 - 1e-9), xtol=1e-9)
    return bound


def upper_bound(outcome: PairedOutcome, alpha: float) -> float:
    """One-sided upper confidence bound of challenger minus champion accuracy, in [-1, 1]; 1 when there are no rows."""
    swapped = outcome.model_copy(
        update={
            "only_champion_right": outcome.only_challenger_right,
            "only_challenger_right": outcome.only_champion_right,
        }
    )
    return -lower_bound(swapped, alpha)


def harm_p_value(outcome: PairedOutcome, margin: float) -> float:
    """How well the rows agree with "no more than the margin was lost": small where more was lost for certain.

    Args:
        outcome: Paired answers.
        margin: Accuracy that may be lost, in [0, 1).

    Returns:
        One-sided p-value, in [0, 1]; 1 when there are no rows.
    """
    return NormalDist().cdf(paired_score(outcome, -margin)) if outcome.rows else 1.0
