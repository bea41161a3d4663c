"""Tango's score bound of a paired difference: against brute force, by hand, and by its own promise."""

import itertools
from functools import cache
from math import isinf, log, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from components.core.contracts import PairedOutcome
from components.gate.noninferiority import lower_bound, paired_score, upper_bound

Z = NormalDist().inv_cdf(0.95)


def outcome(n: int, gained: int, lost: int) -> PairedOutcome:
    right = (n - gained - lost) // 2
    return PairedOutcome(
        both_right=right, only_challenger_right=gained, only_champion_right=lost, both_wrong=n - gained - lost - right
    )


def brute_score(n: int, gained: int, lost: int, difference: float) -> float:
    """The score with the nuisance share found by maximising the trinomial likelihood, not from a formula.

    p(lost) = q and p(gained) = q + difference; the rest is 1 - 2q - difference.
    """

    def unlikelihood(q: float) -> float:
        cells = ((gained, q + difference), (lost, q), (n - gained - lost, 1 - 2 * q - difference))
        return -sum(count * log(max(share, 1e-300)) for count, share in cells if count)

    least, most = max(0.0, -difference), (1 - difference) / 2
    found = minimize_scalar(unlikelihood, bounds=(least, most), method="bounded", options={"xatol": 1e-13})
    q = min((found.x, least, most), key=unlikelihood)
    return float((gained - lost - n * difference) / sqrt(n * (2 * q + difference - difference**2)))


def brute_bound(n: int, gained: int, lost: int) -> float:
    low, high = -1 + 1e-7, (gained - lost) / n
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if brute_score(n, gained, lost, middle) > Z else (low, middle)
    return low


CASES = [(20, 3, 1), (20, 1, 3), (100, 5, 5), (100, 0, 4), (100, 4, 0), (50, 20, 25), (1000, 12, 9), (44, 1, 0)]


@pytest.mark.parametrize(("n", "gained", "lost"), CASES)
@pytest.mark.parametrize("difference", [-0.6, -0.1, -0.01, 0.0, 0.02, 0.3])
def test_score_agrees_with_a_maximised_likelihood(n: int, gained: int, lost: int, difference: float) -> None:
    score = paired_score(outcome(n, gained, lost), difference)
    assert score == pytest.approx(brute_score(n, gained, lost, difference), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("n", "gained", "lost"), CASES)
def test_bound_agrees_with_a_maximised_likelihood(n: int, gained: int, lost: int) -> None:
    assert lower_bound(outcome(n, gained, lost), 0.05) == pytest.approx(brute_bound(n, gained, lost), abs=1e-5)


def test_score_at_no_difference_is_mcnemars() -> None:
    # Without a difference the nuisance share is (gained + lost) / 2n, the score (g - l) / sqrt(g + l): 6 / sqrt(14).
    assert paired_score(outcome(60, 10, 4), 0.0) == pytest.approx(6 / sqrt(14))


def test_score_has_the_sign_of_the_evidence() -> None:
    assert paired_score(outcome(50, 5, 5), -0.1) > 0
    assert paired_score(outcome(50, 5, 5), 0.1) < 0
    assert paired_score(outcome(50, 5, 5), 0.0) == 0


def test_score_without_variance_is_certain() -> None:
    assert paired_score(outcome(10, 0, 0), 0.0) == 0.0
    every = PairedOutcome(only_challenger_right=10)
    assert paired_score(every, -1 + 1e-15) > 0
    assert isinf(paired_score(every, -1 + 1e-15))


@pytest.mark.parametrize("n", [1, 10, 200, 267, 268, 5000])
def test_identical_models_are_bounded_by_the_number_of_rows(n: int) -> None:
    # Nothing gained or lost: q = -d, the score sqrt(-n d / (1 + d)), so the bound is -z^2 / (n + z^2).
    assert lower_bound(outcome(n, 0, 0), 0.05) == pytest.approx(-Z * Z / (n + Z * Z), abs=1e-7)


def test_two_hundred_and_sixty_eight_rows_show_that_identical_models_are_within_a_point() -> None:
    # z^2 / (n + z^2) <= 0.01 from n = 99 z^2 = 267.85 on.
    assert lower_bound(outcome(267, 0, 0), 0.05) < -0.01 <= lower_bound(outcome(268, 0, 0), 0.05)


def test_no_rows_give_the_lowest_bound() -> None:
    assert lower_bound(PairedOutcome(), 0.05) == -1.0


@pytest.mark.parametrize("n", [1, 2, 30, 1000])
def test_all_lost_gives_the_lowest_bound(n: int) -> None:
    assert lower_bound(PairedOutcome(only_champion_right=n), 0.05) == -1.0


@pytest.mark.parametrize("n", [2, 30, 1000])
def test_all_gained_is_bounded_from_below_by_the_formula(n: int) -> None:
    # The likelihood, of gained rows only, is largest where no row agrees: q = (1 - d) / 2. The variance is n (1 - d^2),
    # the score sqrt(n (1 - d) / (1 + d)), and the bound (n - z^2) / (n + z^2).
    bound = lower_bound(PairedOutcome(only_challenger_right=n), 0.05)
    assert bound == pytest.approx((n - Z * Z) / (n + Z * Z), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.2, 0.49])
@pytest.mark.parametrize(("n", "gained", "lost"), [*CASES, (1, 0, 0), (1, 1, 0), (1, 0, 1), (3, 1, 1)])
def test_bound_is_a_possible_difference_at_most_the_estimate(n: int, gained: int, lost: int, alpha: float) -> None:
    bound = lower_bound(outcome(n, gained, lost), alpha)
    assert -1.0 <= bound <= (gained - lost) / n + 1e-9


def test_bound_falls_with_every_row_lost() -> None:
    bounds = [lower_bound(outcome(120, 6, lost), 0.05) for lost in range(115)]
    assert all(before > after for before, after in itertools.pairwise(bounds))


def test_bound_rises_with_every_row_gained() -> None:
    bounds = [lower_bound(outcome(120, gained, 6), 0.05) for gained in range(115)]
    assert all(before < after for before, after in itertools.pairwise(bounds))


def test_bound_rises_with_alpha() -> None:
    bounds = [lower_bound(outcome(120, 7, 6), alpha) for alpha in (0.001, 0.01, 0.05, 0.2, 0.4)]
    assert bounds == sorted(bounds)


def test_bound_does_not_depend_on_how_agreeing_rows_split() -> None:
    right = PairedOutcome(both_right=80, only_challenger_right=3, only_champion_right=2)
    wrong = PairedOutcome(both_wrong=80, only_challenger_right=3, only_champion_right=2)
    assert lower_bound(right, 0.05) == lower_bound(wrong, 0.05)


@pytest.mark.parametrize(("n", "gained", "lost"), CASES)
def test_upper_bound_is_where_the_score_is_as_far_below(n: int, gained: int, lost: int) -> None:
    both = outcome(n, gained, lost)
    assert paired_score(both, upper_bound(both, 0.05)) == pytest.approx(-Z, abs=1e-4)
    assert lower_bound(both, 0.05) < (gained - lost) / n < upper_bound(both, 0.05)


@pytest.mark.parametrize("n", [1, 10, 268])
def test_upper_bound_of_identical_models_mirrors_the_lower(n: int) -> None:
    assert upper_bound(outcome(n, 0, 0), 0.05) == pytest.approx(Z * Z / (n + Z * Z), abs=1e-7)


@pytest.mark.parametrize("n", [2, 30, 1000])
def test_all_lost_is_bounded_from_above_by_the_formula(n: int) -> None:
    upper = upper_bound(PairedOutcome(only_champion_right=n), 0.05)
    assert upper == pytest.approx((Z * Z - n) / (n + Z * Z), abs=1e-6)


def test_no_rows_and_all_gained_give_the_highest_upper_bound() -> None:
    assert upper_bound(PairedOutcome(), 0.05) == 1.0
    assert upper_bound(PairedOutcome(only_challenger_right=30), 0.05) == 1.0


@pytest.mark.parametrize(("n", "lost", "certain"), [(50, 1, False), (1000, 60, True)])
def test_a_loss_beyond_the_margin_is_certain_only_with_the_rows_for_it(n: int, lost: int, certain: bool) -> None:
    assert (upper_bound(outcome(n, 0, lost), 0.05) < -0.01) is certain


@cache
def promoted(n: int, gained: int, lost: int, margin: float) -> bool:
    return lower_bound(outcome(n, gained, lost), 0.05) >= -margin


@pytest.mark.parametrize("n", [200, 500])
@pytest.mark.parametrize(("share_gained", "margin"), [(0.0, 0.02), (0.01, 0.01), (0.03, 0.02), (0.1, 0.05)])
def test_a_model_worse_by_the_margin_passes_no_more_often_than_alpha(
    n: int, share_gained: float, margin: float
) -> None:
    draws, alpha = 3000, 0.05
    shares = [share_gained, share_gained + margin, 1 - 2 * share_gained - margin]
    cells = np.random.default_rng(11).multinomial(n, shares, draws)
    passed = sum(promoted(n, int(gained), int(lost), margin) for gained, lost, _ in cells)
    assert passed <= binom.ppf(0.995, draws, alpha)


def test_a_model_that_is_better_passes_almost_always() -> None:
    cells = np.random.default_rng(12).multinomial(500, [0.06, 0.02, 0.92], 500)
    assert sum(promoted(500, int(gained), int(lost), 0.01) for gained, lost, _ in cells) > 480


def test_the_bound_lies_below_the_truth_as_often_as_it_says() -> None:
    # At the truth -0.05 the exact miss rate (summed over all tables) is 4.8 %; the standard error of 2,000 draws 0.5 %.
    cells = np.random.default_rng(13).multinomial(200, [0.02, 0.07, 0.91], 2000)
    bound = cache(lambda gained, lost: lower_bound(outcome(200, gained, lost), 0.05))
    missed = np.mean([bound(int(g), int(lost)) > -0.05 for g, lost, _ in cells])
    assert 0.033 < missed < 0.063
