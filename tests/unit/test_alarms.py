"""Alarms: levels by hand, the chance of a false alarm against exact integrals and simulated years, N of M windows."""

from math import sqrt
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

from components.core.config import DriftConfig
from components.detect_drift.alarms import alarm_rate, raise_alarm
from components.detect_drift.alarms import test_level as level_of


def agreeing(windows: int, memory: int, budget: float = 1.0) -> DriftConfig:
    return DriftConfig(alarm_windows=windows, alarm_memory=memory, alarms_per_year=budget)


def simulated_alarms(
    level: float, config: DriftConfig, shared: float, years: int, windows: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """False alarms of each year: every year one reference, all of its windows compared with it."""
    of_reference = sqrt(shared) * generator.standard_normal((years, 1))
    statistics = of_reference + sqrt(1 - shared) * generator.standard_normal((years, windows))
    changed = statistics >= norm.isf(level)
    total = np.zeros(years)
    for year in range(years):
        history = changed[year].tolist()
        total[year] = sum(raise_alarm(history[n], history[:n], config) for n in range(config.alarm_memory - 1, windows))
    return total / (windows - config.alarm_memory + 1)


# --- the level, by hand


@pytest.mark.parametrize(
    ("alarms", "windows", "level"), [(1, 52, 1 / 52), (1, 365, 1 / 365), (2, 52, 2 / 52), (0.1, 12, 0.1 / 12)]
)
def test_one_window_spends_its_share_of_the_year(alarms: float, windows: float, level: float) -> None:
    config = DriftConfig(alarms_per_year=alarms, windows_per_year=windows)
    assert level_of(config, 0.0) == pytest.approx(level, rel=1e-5)


def test_a_reference_that_may_be_unusual_makes_the_level_stricter() -> None:
    # By hand: a window's statistic given the reference is normal about sqrt(0.2) u with variance 0.8, and u = 0.6745 is
    # the third quartile. It must exceed the threshold z in 1 / 52: z = 2.0699 sqrt(0.8) + 0.6745 sqrt(0.2) = 2.153.
    assert level_of(agreeing(1, 1), 0.2) == pytest.approx(norm.sf(2.1531), rel=1e-3)
    assert all(level_of(agreeing(1, 1), shared) < 1.000001 / 52 for shared in (0.02, 0.1, 0.3, 0.6, 0.9))


def test_memory_beyond_the_one_window_that_must_look_changed_is_nothing() -> None:
    assert level_of(agreeing(1, 5), 0.2) == pytest.approx(level_of(agreeing(1, 1), 0.2))


@pytest.mark.parametrize("windows", [1, 3])
def test_a_budget_for_every_window_is_no_licence_to_toss_a_coin(windows: int) -> None:
    assert level_of(agreeing(windows, windows, budget=500.0), 0.2) == 0.5


def test_two_of_two_independent_windows_by_hand() -> None:
    # Both must look changed: the level is the root of the budget.
    assert level_of(agreeing(2, 2), 0.0) == pytest.approx(sqrt(1 / 52), rel=1e-5)


def test_two_of_three_independent_windows_by_hand() -> None:
    # This one (p), and not both before it quiet: p (1 - (1 - p)^2).
    level = level_of(agreeing(2, 3), 0.0)
    assert level * (1 - (1 - level) ** 2) == pytest.approx(1 / 52, rel=1e-6)
    assert alarm_rate(0.2, agreeing(2, 3), 0.0) == pytest.approx(0.2 * (1 - 0.64))


# --- the chance of a false alarm


@pytest.mark.parametrize(("windows", "memory"), [(1, 1), (2, 2), (2, 3), (3, 5)])
@pytest.mark.parametrize("shared", [0.0, 0.02, 0.3, 0.5])
@pytest.mark.parametrize("unusual", [0.1, 0.5, 0.9])
def test_alarm_rate_agrees_with_simulated_windows(windows: int, memory: int, shared: float, unusual: float) -> None:
    config, level, draws = agreeing(windows, memory), 0.15, 100_000
    generator = np.random.default_rng(1)
    windows_alone = sqrt(1 - shared) * generator.standard_normal((draws, memory))
    changed = sqrt(shared) * norm.ppf(unusual) + windows_alone >= norm.isf(level)
    simulated = float((changed[:, -1] & (changed.sum(axis=1) >= windows)).mean())
    wanted = alarm_rate(level, config, shared, unusual)
    assert simulated == pytest.approx(wanted, abs=4 * sqrt(wanted / draws) + 1e-9)


def test_alarm_rate_over_all_references_is_the_level() -> None:
    shares = (np.arange(2000) + 0.5) / 2000
    rates = [alarm_rate(0.05, agreeing(1, 1), 0.3, share) for share in shares]
    assert float(np.mean(rates)) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(("windows", "memory", "shared"), [(1, 1, 0.3), (2, 3, 0.02), (2, 3, 0.2), (3, 4, 0.5)])
def test_three_of_four_references_keep_to_the_budget(windows: int, memory: int, shared: float) -> None:
    config, years = agreeing(windows, memory, budget=2.0), 400
    level = level_of(config, shared)
    rates = simulated_alarms(level, config, shared, years, 1000, np.random.default_rng(3))
    kept = int((rates <= 2 / 52).sum())
    assert binom.ppf(0.001, years, 0.75) - 8 <= kept <= binom.ppf(0.999, years, 0.75) + 8  # 8: a rate is known to 10 %


@pytest.mark.parametrize(("windows", "memory"), [(2, 2), (2, 3), (3, 5), (5, 5), (10, 20)])
@pytest.mark.parametrize("shared", [0.0, 0.02, 0.5, 0.9])
def test_the_level_spends_the_budget_and_no_more(windows: int, memory: int, shared: float) -> None:
    config = agreeing(windows, memory)
    level = level_of(config, shared)
    assert 0 < level <= 0.5
    rate = alarm_rate(level, config, shared)
    assert rate <= 1 / 52 + 1e-8
    assert level == 0.5 or max(rate, alarm_rate(level, config, 0.0)) == pytest.approx(1 / 52, rel=1e-4)


def test_alarm_rate_grows_with_level_and_with_how_unusual_the_reference_is() -> None:
    config = agreeing(2, 3)
    by_level = [alarm_rate(level, config, 0.2) for level in (0.001, 0.01, 0.1, 0.5)]
    by_reference = [alarm_rate(0.05, config, 0.2, unusual) for unusual in (0.05, 0.5, 0.75, 0.99)]
    assert by_level == sorted(by_level)
    assert by_reference == sorted(by_reference)


def test_more_windows_that_must_agree_are_each_tested_less_strictly() -> None:
    levels = [level_of(agreeing(n, n), 0.02) for n in (1, 2, 3)]
    assert levels == sorted(levels)
    assert levels[1] > 5 * levels[0]


@pytest.mark.parametrize("budget", [0.001, 0.1, 51.9])
def test_very_small_and_very_large_budgets_have_a_level(budget: float) -> None:
    assert 0 < level_of(agreeing(2, 3, budget=budget), 0.1) <= 0.5


# --- N of M windows


@pytest.mark.parametrize(
    ("windows", "memory", "changed", "before", "alarm"),
    [
        (1, 1, True, [], True),
        (1, 1, False, [True, True], False),
        (2, 2, True, [], False),
        (2, 2, True, [True], True),
        (2, 2, True, [True, False], False),  # the one before was quiet
        (2, 3, True, [True, False], True),
        (2, 3, True, [True, False, False], False),  # too long ago
        (2, 3, False, [True, True], False),  # over: this one is quiet
        (3, 5, True, [True, False, True, False], True),
        (3, 5, True, [True, False, False, True, False], False),
        (3, 3, True, [True], False),
    ],
)
def test_an_alarm_needs_enough_of_the_last_windows(
    windows: int, memory: int, changed: bool, before: list[bool], alarm: bool
) -> None:
    assert raise_alarm(changed, before, agreeing(windows, memory)) is alarm
