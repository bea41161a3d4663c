"""How much worse may the challenger be, given paired answers on the same rows? Values in, values out."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from scipy.optimize import brentq

from components.core.contracts import PairedOutcome


def paired_score(outcome: PairedOutcome, difference: float) -> float:
    """Score statistic of "challenger minus champion accuracy is `difference`": standard normal under that hypothesis.

    Args:
        outcome: At least one row.
        difference: Hypothesis, in (-1, 1).

    Returns:
        Positive where the rows speak for a larger difference; +-inf where the hypothesis leaves no variance.

    Source:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Stat. Med. 17 (1998), equations for q21 and the score.
    """
    n, gained, lost = outcome.rows, outcome.only_challenger_right, outcome.only_champion_right
    b = -(gained + lost) + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    # Largest likelihood of "only the champion is right" under the hypothesis; rounding may leave -1e-17 under the root.
    q = (sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    excess = gained - lost - n * difference
    if variance <= 1e-12:
        return 0.0 if excess == 0 else float("inf") if excess > 0 else float("-inf")
    return excess / sqrt(variance)


def lower_bound(outcome: PairedOutcome, alpha: float) -> float:
    """One-sided lower confidence bound of challenger minus champion accuracy, in [-1, 1]; -1 when there are no rows.

    Args:
        outcome: Paired answers.
        alpha: The chance, at most, that the true difference is below the bound; in (0, 0.5).
    """
    if outcome.rows == 0:
        return -1.0
    z = NormalDist().inv_cdf(1 - alpha)
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
