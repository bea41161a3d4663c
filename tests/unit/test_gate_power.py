"""Rows that a check needs: by hand, against the check itself, and where no number helps."""

from math import ceil, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from components.core.contracts import PairedOutcome
from components.core.statistics import wilson_interval
from components.gate.noninferiority import lower_bound, upper_bound
from components.gate.power import rows_for_accuracy, rows_needed, smallest_margin

Z = NormalDist().inv_cdf(0.95)
Z80 = NormalDist().inv_cdf(0.8)


def test_rows_of_models_that_always_agree_by_hand() -> None:
    # Nothing gained or lost: under the margin m the variance is m - m^2, under the truth 0, so n = z^2 (1 - m) / m.
    assert rows_needed(gained=0, lost=0, margin=0.01, level=0.05) == ceil(Z * Z * 99) == 268
    assert rows_needed(gained=0, lost=0, margin=0.1, level=0.05) == ceil(Z * Z * 9) == 25


def test_rows_of_models_that_only_gain_by_hand() -> None:
    # With g = 0.05, m = 0.1: b = -g + (2 - g)(-m) and c = 0, so q = -b / 2, and 2 q = g + 2 m - g m = 0.245.
    # Under the margin the variance is 0.245 - m (1 + m) = 0.135, under the truth 0.05 - 0.0025. The distance is 0.15.
    by_hand = ((Z * sqrt(0.135) + Z80 * sqrt(0.0475)) / 0.15) ** 2
    assert rows_needed(gained=0.05, lost=0, margin=0.1, level=0.05) == ceil(by_hand)


def test_usual_formula_is_met_where_the_margin_is_small_against_the_discordance() -> None:
    # (z_alpha + z_power)^2 psi / m^2 = 6.1826 x 0.3 / 0.0001 = 18,548.
    needed = rows_needed(gained=0.15, lost=0.15, margin=0.01, level=0.05)
    assert needed == pytest.approx((Z + Z80) ** 2 * 0.3 / 0.01**2, rel=0.01)


def chance(rows: int, gained: float, lost: float, margin: float, level: float) -> float:
    """Chance of passing, added up over all tables."""
    total = 0.0
    for only_old in range(int(binom.ppf(1 - 1e-9, rows, lost)) + 1):
        for only_new in range(int(binom.ppf(1 - 1e-9, rows, gained)) + 1):
            outcome = PairedOutcome(
                both_right=rows - only_old - only_new, only_challenger_right=only_new, only_champion_right=only_old
            )
            if lower_bound(outcome, level) >= -margin:
                cells = [only_new, only_old, rows - only_new - only_old]
                total += float(multinomial.pmf(cells, rows, [gained, lost, 1 - gained - lost]))
    return total


@pytest.mark.parametrize(
    ("gained", "lost", "margin", "level"),
    [(0.03, 0.03, 0.05, 0.05), (0.04, 0.02, 0.05, 0.0225), (0.05, 0.06, 0.1, 0.05)],
)
def test_with_the_rows_needed_four_of_five_pass(gained: float, lost: float, margin: float, level: float) -> None:
    rows = rows_needed(gained=gained, lost=lost, margin=margin, level=level)
    assert rows is not None
    assert 0.76 < chance(rows, gained, lost, margin, level) < 0.86


def test_no_number_of_rows_decides_at_the_margin() -> None:
    assert rows_needed(gained=0.02, lost=0.03, margin=0.01, level=0.05) is None


def test_with_the_rows_needed_four_of_five_that_are_beyond_the_margin_fail_for_certain() -> None:
    rows = rows_needed(gained=0.02, lost=0.06, margin=0.01, level=0.05)
    assert rows is not None
    random = np.random.default_rng(0)
    counts = random.multinomial(rows, [0.02, 0.06, 0.92], size=2000).tolist()
    shown = [
        upper_bound(PairedOutcome(only_challenger_right=g, only_champion_right=lost, both_right=n), 0.05) < -0.01
        for g, lost, n in counts
    ]
    assert 0.75 < np.mean(shown) < 0.86


def test_a_margin_of_everything_needs_one_row() -> None:
    assert rows_needed(gained=0.0, lost=1.0, margin=1.0, level=0.05) == 1


def test_rows_grow_with_discordance_power_and_certainty_and_fall_with_the_margin() -> None:
    base = {"gained": 0.02, "lost": 0.02, "margin": 0.01, "level": 0.05}
    usual = rows_needed(**base)
    assert usual is not None
    for harder in ({"gained": 0.03, "lost": 0.03}, {"level": 0.01}, {"power": 0.9}, {"lost": 0.025}, {"margin": 0.009}):
        assert (rows_needed(**{**base, **harder}) or 0) > usual


@pytest.mark.parametrize("discordance", [0.0, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("rows", [100, 2_000, 50_000])
def test_smallest_margin_is_the_one_that_needs_these_rows(rows: int, discordance: float) -> None:
    margin = smallest_margin(rows=rows, discordance=discordance, level=0.05)
    assert margin is not None
    half = discordance / 2
    assert rows_needed(gained=half, lost=half, margin=margin, level=0.05) == pytest.approx(rows, abs=1)


def test_smallest_margin_of_models_that_always_agree_by_hand() -> None:
    # n = z^2 (1 - m) / m turned round: m = z^2 / (n + z^2).
    assert smallest_margin(rows=100, discordance=0, level=0.05) == pytest.approx(Z * Z / (100 + Z * Z), abs=1e-6)


def test_one_row_shows_no_margin() -> None:
    assert smallest_margin(rows=1, discordance=1.0, level=0.05, power=0.9) is None


def test_rows_for_an_accuracy_by_hand() -> None:
    # ((1.6449 sqrt(0.21) + 0.8416 sqrt(0.16)) / 0.1)^2 = (0.7538 + 0.3366)^2 / 0.01 = 118.9.
    assert rows_for_accuracy(accuracy=0.8, threshold=0.7, level=0.05) == 119


def test_with_the_rows_for_an_accuracy_four_of_five_pass() -> None:
    rows = rows_for_accuracy(accuracy=0.8, threshold=0.7, level=0.05)
    assert rows is not None
    passing = [k for k in range(rows + 1) if wilson_interval(k, rows, 0.9).lower >= 0.7]
    assert float(binom.sf(passing[0] - 1, rows, 0.8)) == pytest.approx(0.8, abs=0.04)


def test_rows_for_perfect_answers_by_hand() -> None:
    # Wilson's lower bound of n of n is n / (n + z^2), which reaches 0.9 from 9 z^2 = 24.35 rows on.
    assert rows_for_accuracy(accuracy=1.0, threshold=0.9, level=0.05) == 25
    assert wilson_interval(24, 24, 0.9).lower < 0.9 <= wilson_interval(25, 25, 0.9).lower


@pytest.mark.parametrize(("accuracy", "threshold"), [(0.7, 0.7), (1.0, 1.0), (0.0, 0.0)])
def test_no_number_of_rows_decides_at_the_threshold(accuracy: float, threshold: float) -> None:
    assert rows_for_accuracy(accuracy=accuracy, threshold=threshold, level=0.05) is None
