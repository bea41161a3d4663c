"""Intervals of proportions, against published examples, scipy and cases worked by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from components.core.statistics import newcombe_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Stat. Med. 17 (1998) 857-872, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombes_table(successes: int, trials: int, lower: float, upper: float) -> None:
    interval = wilson_interval(successes, trials, 0.95)
    assert interval.lower == pytest.approx(lower, abs=5e-5)
    assert interval.upper == pytest.approx(upper, abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 7), (7, 7), (499, 1000)])
def test_wilson_agrees_with_scipy(successes: int, trials: int, confidence: float) -> None:
    ours = wilson_interval(successes, trials, confidence)
    scipys = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert ours.lower == pytest.approx(scipys.low, abs=1e-12)
    assert ours.upper == pytest.approx(scipys.high, abs=1e-12)


def test_wilson_knows_nothing_without_trials() -> None:
    interval = wilson_interval(0, 0, 0.95)
    assert (interval.lower, interval.upper) == (0.0, 1.0)


def test_wilson_of_all_or_nothing_ends_exactly_at_the_edge() -> None:
    # share = 1, z^2 = 4, n = 4: centre (1 + 0.5), half 2 * sqrt(4 / 64) = 0.5, scale 2: 0.5 to 1.
    confidence = 0.9544997361036416  # of z = 2
    full, none = wilson_interval(4, 4, confidence), wilson_interval(0, 4, confidence)
    assert full.lower == pytest.approx(0.5, abs=1e-9)
    assert full.upper == pytest.approx(1.0)
    assert full.upper <= 1.0
    assert none.lower == pytest.approx(0.0)
    assert none.lower >= 0.0
    assert none.upper == pytest.approx(0.5, abs=1e-9)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    # 4,000 draws at 95 %: the standard error of the coverage is 0.34 %, and Wilson's own wobble at n = 80 below 1 %.
    draws = np.random.default_rng(7).binomial(80, 0.3, 4000)
    intervals = {k: wilson_interval(int(k), 80, 0.95) for k in set(draws.tolist())}
    covered = np.mean([intervals[k].lower <= 0.3 <= intervals[k].upper for k in draws.tolist()])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(
    ("first", "second", "lower", "upper"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),  # Newcombe, Stat. Med. 17 (1998) 873-890, table II, method 10
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_newcombe_agrees_with_his_table(
    first: tuple[int, int], second: tuple[int, int], lower: float, upper: float
) -> None:
    interval = newcombe_interval(first, second, 0.95)
    assert interval.lower == pytest.approx(lower, abs=5e-5)
    assert interval.upper == pytest.approx(upper, abs=5e-5)


def test_newcombe_turns_round_when_the_samples_are_swapped() -> None:
    there, back = newcombe_interval((56, 70), (48, 80), 0.95), newcombe_interval((48, 80), (56, 70), 0.95)
    assert there.lower == pytest.approx(-back.upper)
    assert there.upper == pytest.approx(-back.lower)


def test_newcombe_of_equal_shares_contains_zero_symmetrically() -> None:
    interval = newcombe_interval((30, 60), (30, 60), 0.95)
    assert interval.lower < 0
    assert interval.upper == pytest.approx(-interval.lower)


def test_newcombe_of_a_loud_difference_excludes_zero() -> None:
    assert newcombe_interval((90, 100), (40, 100), 0.95).lower > 0.3


@pytest.mark.parametrize(("first", "second"), [((0, 0), (5, 10)), ((5, 10), (0, 0)), ((0, 0), (0, 0))])
def test_newcombe_without_rows_claims_nothing(first: tuple[int, int], second: tuple[int, int]) -> None:
    interval = newcombe_interval(first, second, 0.95)
    assert -1.0 <= interval.lower <= 0.0 <= interval.upper <= 1.0


def test_newcombe_stays_within_the_possible_differences() -> None:
    interval = newcombe_interval((3, 3), (0, 3), 0.999)
    assert interval.upper <= 1.0
    assert newcombe_interval((0, 3), (3, 3), 0.999).lower >= -1.0
