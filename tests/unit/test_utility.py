"""What a strategy is expected to bring: exact cases, the nearest count most, and a reference."""

from datetime import date

import numpy as np
import pytest

from components.core.config import DecisionConfig
from components.core.plans import Evidence, PastGain
from components.core.recipes import RECIPES
from components.decide.situation import describe_situation
from components.decide.utility import (
    SKIP,
    Policy,
    benchmark_experience,
    chance_to_be_best,
    forecast,
    relative_work,
    utility,
)

EVIDENCE = Evidence(
    window="w",
    window_created=date(2026, 11, 25),
    champion="v",
    champion_classes=("cat", "dog"),
    champion_image_size=32,
    old_rows=1000,
    new_rows=100,
    held_out=25,
    window_classes={"cat": 60, "dog": 65},
    drop=0.2,
    image_size=32,
)
HERE = describe_situation(EVIDENCE, DecisionConfig())


def policy(*gains: PastGain) -> Policy:
    return Policy(decision=DecisionConfig(), recipes=RECIPES, fisher_rows=256, experience=gains)


def gained(old: float | None, new: float, strategy: str = "distil", **situation: float) -> PastGain:
    return PastGain(strategy=strategy, situation={**HERE, **situation}, old=old, new=new)


def test_a_line_through_what_was_lost_is_found_exactly() -> None:
    cases = [gained(-0.02, 0.02 + drop, drop=drop) for drop in (0.0, 0.1, 0.3, 0.5)]  # half of what was lost
    found = forecast("distil", EVIDENCE, policy(*cases))
    assert found.gain == pytest.approx(0.1, abs=2e-4)


def test_the_slope_agrees_with_weighted_least_squares() -> None:
    generator = np.random.default_rng(0)
    drops, gains = generator.uniform(0, 0.6, 40), generator.uniform(-0.1, 0.4, 40)
    cases = [gained(None, float(gain), drop=float(drop)) for drop, gain in zip(drops, gains, strict=True)]
    squares = ((drops - 0.2) / 0.3) ** 2
    weights = np.exp(-squares / 2)  # the sixth nearest is closer than one unit
    slope, height = np.polyfit(drops - 0.2, gains, 1, w=np.sqrt(weights))
    assert forecast("distil", EVIDENCE, policy(*cases)).gain == pytest.approx(height, abs=1e-3)
    assert slope != pytest.approx(0.0, abs=0.01)


def test_cases_in_one_place_give_their_mean_and_spread() -> None:
    cases = [gained(0.0, new) for new in (0.1, 0.2, 0.3)]
    found = forecast("distil", EVIDENCE, policy(*cases))
    assert found.gain == pytest.approx(0.1)
    assert found.gain_interval is not None
    half = 1.2816 * np.hypot(np.std([0.05, 0.1, 0.15]), 0.005)
    assert found.gain_interval.upper - 0.1 == pytest.approx(half, rel=1e-3)


def test_the_more_alike_a_case_the_more_it_counts() -> None:
    near, far = [gained(0.0, 0.2)] * 6, [gained(0.0, -0.2, volume=HERE["volume"] + 2)] * 6
    assert forecast("distil", EVIDENCE, policy(*near, *far)).gain == pytest.approx(0.1, abs=0.001)


def test_far_cases_still_tell_something() -> None:
    far = [gained(0.0, 0.2, volume=50.0)] * 6
    assert forecast("distil", EVIDENCE, policy(*far)).gain == pytest.approx(0.1)


def test_a_strategy_that_never_ran_has_no_gain() -> None:
    assert forecast("ewc", EVIDENCE, policy(gained(0.0, 0.2))).gain is None


def test_skipping_brings_and_costs_nothing() -> None:
    nothing = forecast(SKIP, EVIDENCE, policy())
    assert (nothing.gain, nothing.seconds, nothing.gpu_seconds, nothing.money) == (0.0, 0.0, 0.0, 0.0)
    assert utility(SKIP, EVIDENCE, policy()) == 0.0
    assert chance_to_be_best(SKIP, [nothing]) is None


def test_compute_is_paid_in_points() -> None:
    # Retrain: all 1,100 rows, 30 epochs. Fine-tune: 400 rows, 10 epochs.
    cases = policy(gained(0.0, 0.2, "fine-tune"), gained(0.0, 0.2, "retrain"))
    share = 400 * 10 / (1100 * 30)
    assert relative_work("fine-tune", EVIDENCE, cases) == pytest.approx(share)
    assert utility("retrain", EVIDENCE, cases) == pytest.approx(10.0 - 0.5)
    assert utility("fine-tune", EVIDENCE, cases) == pytest.approx(10.0 - 0.5 * share)


def test_the_experience_that_comes_with_the_product_covers_every_recipe() -> None:
    assert {past.strategy for past in benchmark_experience()} == set(RECIPES)
    assert all(set(past.situation) == set(HERE) for past in benchmark_experience())
