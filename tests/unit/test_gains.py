"""What a strategy is expected to bring: exact cases, the nearest count most, a reference, and intervals that hold."""

import numpy as np
import pytest

from components.core.plans import PastGain
from components.decide.gains import PRIOR_CASES, PRIOR_DEVIATION, SCALES, Gain, expected_gain

HERE = {"drop": 0.2, "unknown": 0.0, "volume": -1.0, "rows": 2.0, "imbalance": 0.0, "drifted": 0.0, "resized": 0.0}


def gained(old: float | None, new: float, **situation: float) -> PastGain:
    return PastGain(strategy="distil", situation={**HERE, **situation}, old=old, new=new)


def expected(*cases: PastGain) -> Gain:
    found = expected_gain(HERE, [(case, 1.0) for case in cases])
    assert found is not None
    return found


def test_nothing_tells_where_there_are_no_cases() -> None:
    assert expected_gain(HERE, []) is None


def test_a_line_through_what_was_lost_is_found_exactly() -> None:
    cases = [gained(-0.02, 0.02 + drop, drop=drop) for drop in (0.0, 0.1, 0.3, 0.5)]  # half of what was lost
    assert expected(*cases * 10).mean == pytest.approx(0.1, abs=2e-4)
    both = [gained(0.0, drop + 2 * new, drop=drop, unknown=new) for drop in (0.0, 0.4) for new in (0.0, 0.1, 0.2)]
    both *= 10
    assert expected(*both).mean == pytest.approx(0.1, abs=4e-3)


def test_the_value_and_its_interval_agree_with_weighted_least_squares() -> None:
    generator = np.random.default_rng(0)
    drops, gains = generator.uniform(0, 0.6, 40), generator.uniform(-0.1, 0.4, 40)
    cases = [gained(None, float(gain), drop=float(drop)) for drop, gain in zip(drops, gains, strict=True)]
    found = expected(*cases)
    squares = ((drops - 0.2) / SCALES["drop"]) ** 2
    weights = np.exp(-squares / 2)  # the sixth nearest is closer than one unit
    slope, height = np.polyfit(drops - 0.2, gains, 1, w=np.sqrt(weights))
    assert found.mean == pytest.approx(height, abs=1e-3)
    number = weights.sum() ** 2 / (weights**2).sum()
    residuals = gains - height - slope * (drops - 0.2)
    scatter = number * np.average(residuals**2, weights=weights) + PRIOR_CASES * PRIOR_DEVIATION**2
    middle = np.average(drops - 0.2, weights=weights)
    leverage = 1 + middle**2 / np.average((drops - 0.2 - middle) ** 2, weights=weights)
    deviation = np.sqrt(scatter / (number - 3 + PRIOR_CASES) * (1 + leverage / number))
    assert found.interval.upper - found.mean == pytest.approx(1.2816 * deviation, rel=0.01)


def test_cases_in_one_place_give_their_mean() -> None:
    found = expected(*[gained(0.0, new) for new in (0.1, 0.2, 0.3)])
    assert found.mean == pytest.approx(0.1)
    assert found.interval.upper - found.mean == pytest.approx(found.mean - found.interval.lower)


def test_the_new_holdout_alone_counts_where_there_was_no_old_one() -> None:
    assert expected(gained(None, 0.2)).mean == pytest.approx(0.2)


def test_the_more_alike_a_case_the_more_it_counts() -> None:
    near, far = [gained(0.0, 0.2)] * 6, [gained(0.0, -0.2, volume=HERE["volume"] + 2)] * 6
    assert expected(*near, *far).mean == pytest.approx(0.1, abs=0.001)


def test_a_case_may_count_for_several() -> None:
    found = expected_gain(HERE, [(gained(0.0, 0.2), 3.0), (gained(0.0, 0.0), 1.0)])
    assert found is not None
    assert found.mean == pytest.approx(0.075)


def test_far_cases_still_tell_something() -> None:
    assert expected(*[gained(0.0, 0.2, volume=50.0)] * 6).mean == pytest.approx(0.1)


def test_one_case_tells_little_and_one_far_away_less() -> None:
    def width(*cases: PastGain) -> float:
        found = expected(*cases)
        return found.interval.upper - found.interval.lower

    one, many = width(gained(0.0, 0.2)), width(*[gained(0.0, 0.2)] * 20)
    assert one > 2 * many > 0
    assert width(gained(0.0, 0.2, drop=0.4)) > one


def test_two_cases_are_no_line() -> None:
    steep = [gained(None, 0.05, drop=0.28), gained(None, 0.25, drop=0.30)]
    found = expected_gain({**HERE, "drop": 0.9}, [(case, 1.0) for case in steep])
    assert found is not None
    assert found.mean < 0.3


def test_what_is_lost_is_known_as_well_as_it_was_measured() -> None:
    cases = [(gained(None, drop / 2, drop=drop), 1.0) for drop in (0.0, 0.1, 0.2, 0.3, 0.4) for _ in range(10)]
    sure, unsure = expected_gain(HERE, cases), expected_gain(HERE, cases, doubt=0.2)
    assert sure is not None
    assert unsure is not None
    half = unsure.interval.upper - unsure.mean
    assert half**2 - (sure.interval.upper - sure.mean) ** 2 == pytest.approx((1.2816 * 0.5 * 0.2) ** 2, rel=0.05)


def test_no_more_is_gained_than_there_is_room_for() -> None:
    found = expected_gain(HERE, [(gained(None, 0.5), 1.0)] * 20, most=0.3)
    assert found is not None
    assert (found.mean, found.interval.upper) == (0.3, 0.3)


def test_gains_stay_within_what_accuracies_allow() -> None:
    found = expected(*[gained(drop, drop, drop=drop) for drop in (0.8, 0.9, 1.0) for _ in range(9)])
    assert -1.0 <= found.interval.lower <= found.mean <= found.interval.upper <= 1.0


def test_four_of_five_intervals_hold_the_gain_that_follows() -> None:
    generator = np.random.default_rng(1)

    def draw() -> PastGain:
        drop = float(generator.uniform(0.0, 0.4))
        return gained(None, drop / 2 + float(generator.normal(0, 0.04)), drop=drop)

    held = 0
    for _ in range(400):
        found = expected(*[draw() for _ in range(12)])
        held += found.interval.lower <= 0.1 + generator.normal(0, 0.04) <= found.interval.upper
    assert 0.74 <= held / 400 <= 0.9
